// The page's questions to the user: a line of text, a yes or no, the settings. It knows nothing of what they are for.

import { $ } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

// ask({title, text, label, value, secret}): what was typed, or null. Without a label: "" for OK, null for cancel.
export function ask({ title, text = "", label = null, value = "", secret = false }) {
  const input = $("askLabel").querySelector("input");
  $("askTitle").textContent = title;
  $("askText").textContent = text;
  $("askLabel").hidden = label === null;
  $("askLabel").querySelector("span").textContent = label ?? "";
  input.type = secret ? "password" : "text";
  input.required = label !== null;
  input.value = value;
  const answer = result($("ask")).then((ok) => (ok ? input.value.trim() : null)).finally(() => (input.value = ""));
  if (label !== null) input.select();
  return answer;
}

// The settings as they were saved, or null: {system, temperature, top_p, max_tokens, seed}, the empty ones left out.
export async function askSettings(settings) {
  const form = $("settings").querySelector("form");
  form.reset();
  for (const [name, value] of Object.entries(settings)) if (form.elements[name]) form.elements[name].value = value;
  $("clearSettings").onclick = () => form.reset();
  if (!(await result($("settings")))) return null;
  const filled = [...new FormData(form)].filter(([, value]) => value.trim());
  return Object.fromEntries(filled.map(([name, value]) => [name, NUMBERS.includes(name) ? Number(value) : value]));
}

// Open a dialog; true when it was closed with its main button.
function result(dialog) {
  dialog.returnValue = "";
  dialog.querySelector(".cancel").onclick = () => dialog.close("");
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true }));
}

// A press beside a dialog closes it.
export function closeOutside(dialog) {
  dialog.addEventListener("pointerdown", (event) => {
    const box = dialog.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (event.target === dialog && !inside) dialog.close("");
  });
}
