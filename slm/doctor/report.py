"""The command `slm doctor`: how the checks are shown, and the removal of what nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slm.joints import Joints, pass_joints

if TYPE_CHECKING:
    from slm.doctor.check import Check


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clean", is_flag=True, help="Remove the caches and interrupted downloads; what is missing later is "
              "made again.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_joints
def doctor(joints: Joints, /, clean: bool, as_json: bool) -> None:
    """Show what is installed, what this CPU can do, what is cached, and what to do about each fault.

    It ends with 1 where there is a fault. Without a network it waits a few seconds and says so.

    \b
    Example:
      slm doctor
      slm doctor --clean
    """
    from slm.terminal.console import emit_json

    if clean:
        _clean(as_json)
        return
    from dataclasses import asdict

    from slm.doctor.examine import examine
    from slm.models import caches

    checks = examine(joints)
    if as_json:
        emit_json({
            "checks": [asdict(check) for check in checks], "ok": all(c.ok is not False for c in checks),
            "caches": [{**asdict(cache), "folder": str(cache.folder)} for cache in caches.found()],
        })  # fmt: skip
    else:
        _show(checks)
    if any(check.ok is False for check in checks):
        raise click.exceptions.Exit(1)


def _show(checks: list[Check]) -> None:
    """A line for each check; below it what mends it, or would be better."""
    from rich.markup import escape

    from slm.terminal.console import out

    screen = out()
    for check in checks:
        mark = {True: "[green]ok[/]   ", False: "[red]fault[/]", None: "     "}[check.ok]
        screen.print(f"{mark} {check.name:<32}{escape(check.found)}", soft_wrap=True)
        if check.fix and not check.ok:
            screen.print(f"      -> {escape(check.fix)}", soft_wrap=True)
    faults = sum(check.ok is False for check in checks)
    screen.print(f"{faults} fault{'s' if faults != 1 else ''}" if faults else "no faults")


def _clean(as_json: bool) -> None:
    """Remove caches and what broken-off work left, and say what was freed and what stays."""
    from slm import paths
    from slm.models import caches
    from slm.models.leftovers import leftovers, remove_leftovers_found
    from slm.terminal.console import emit_json, note

    unfinished = leftovers()
    gone = remove_leftovers_found(unfinished)
    removed = caches.clean()
    stay = [one for one in unfinished if one.under_way]
    if as_json:
        rows = [{"folder": str(c.folder), "entries": c.entries, "size_bytes": c.size_bytes} for c in removed]
        rows += [{"folder": str(one.path), "entries": 1, "size_bytes": one.size_bytes} for one in gone]
        left = [{"folder": str(one.path), "size_bytes": one.size_bytes} for one in stay]
        emit_json({"removed": rows, "left": left, "size_bytes": sum(row["size_bytes"] for row in rows)})
        return
    for one in gone:
        click.echo(f"removed {one.path}: {one.what}, {one.size_bytes / 1e6:,.0f} MB freed")
    for cache in removed:
        click.echo(f"removed {cache.folder}: {cache.entries} entries, {cache.size_bytes / 1e6:,.0f} MB freed")
    for one in stay:
        note(f"left {one.path}: it was written to in the last ten minutes and may be under way")
    if not removed and not gone:
        click.echo(f"there are no caches in {paths.home()}")
