// One answer on its way: the request's body, and what its events say. It knows nothing of the page around it.

import { conversation } from "./store.js";

// The body of a request. settings: {system, temperature, ...}, sent as they are; rag: answer from the documents.
export function requestOf(messages, { model, rag, settings: { system, ...sampling } }) {
  return {
    model, messages: conversation(system, messages), stream: true, stream_options: { include_usage: true }, ...sampling, ...(rag ? { rag: true } : {}),
  };
}

// Reads the answer to its end; `show(message)` is called at every event. Returns {message, error}: error is null when
// the answer is whole or was stopped, which message.meta.finish then says.
export async function receive(server, body, { signal, languageOfAdapter, show }) {
  const meta = { citations: [] }, message = { role: "assistant", content: "", meta }, began = performance.now();
  let first = 0, error = null;
  try {
    show(message);
    for await (const event of server.chat(body, signal)) {
      const choice = event.choices?.[0], piece = choice?.delta?.content;
      if (event.slm) Object.assign(meta, { adapter: event.slm.adapter, reason: event.slm.route_reason, language: languageOfAdapter(event.slm.adapter) });
      meta.model = event.model ?? meta.model;
      meta.citations = event.citations ?? meta.citations;
      meta.refused = event.refused ?? meta.refused; // of a pointed answer: the documents do not hold it
      meta.finish = choice?.finish_reason ?? meta.finish;
      meta.rate = event.timings?.decode_tokens_per_s ?? meta.rate;
      meta.tokens = event.usage?.completion_tokens ?? meta.tokens;
      if (piece) {
        first ||= performance.now();
        message.content += piece;
      }
      show(message);
    }
  } catch (caught) {
    if (caught.name === "AbortError") meta.finish = "stopped";
    else error = caught;
  }
  if (first) meta.ttft = (first - began) / 1000;
  // The server's own rate where it sends one; else the tokens after the first over the time since it was seen.
  if (first && meta.tokens > 1) meta.rate ??= (meta.tokens - 1) / ((performance.now() - first) / 1000);
  return { message, error };
}
