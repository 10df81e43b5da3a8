"""Every check in the order of the report. It changes nothing but the file of what was measured."""

from __future__ import annotations

import shlex

from slm.doctor.check import Check, amount, guarded
from slm.doctor.configuration import configuration_checks
from slm.doctor.installed import llama_checks, package_checks, program_checks, try_llama
from slm.doctor.network import Reach, reach_checks
from slm.doctor.places import place_checks
from slm.doctor.processor import processor_checks
from slm.doctor.pulled import model_checks
from slm.joints import Joints
from slm.models import caches
from slm.models.leftovers import leftovers

_CLEAN = "slm doctor --clean"


def examine(joints: Joints) -> list[Check]:
    """Look at everything. One thing that cannot be looked at is a fault of its own and does not hide the others."""
    reach = Reach()
    asking = reach.ask()
    trial = try_llama()
    checks = [
        *program_checks(),
        *package_checks(),
        *llama_checks(trial),
        *guarded("processor", lambda: processor_checks(trial.built)),
        *guarded("configuration", configuration_checks),
        *guarded("data folder", place_checks),
    ]
    models = guarded("models", model_checks)
    checks += [*models, *guarded("unfinished", leftover_checks), *guarded("indexes", lambda: index_checks(joints))]
    checks += guarded("caches", lambda: cache_checks(joints))
    for thread in asking:
        thread.join(15.0)
    any_pulled = any(check.name.startswith("model ") and check.ok for check in models)
    return [*checks, *reach_checks(reach, any_pulled=any_pulled)]


def leftover_checks() -> list[Check]:
    """Downloads and outputs that nobody finished, with their size."""
    checks = []
    for one in leftovers():
        found = f"{amount(one.size_bytes)} in {one.path}"
        if one.under_way:
            checks.append(Check(one.what, None, f"{found}, written to in the last ten minutes: it may be under way"))
            continue
        on = f"slm pull {one.model} goes on with it; " if one.model else ""
        checks.append(Check(one.what, False, found, f"{on}{_CLEAN} removes it" if on else _CLEAN))
    return checks


def index_checks(joints: Joints) -> list[Check]:
    """Whether indexes are whole and were made with the embedder that is here."""
    checks = []
    for state in joints.index_states():
        if state.problem:
            checks.append(Check(f"index {state.name}", False, state.problem, state.mend))
        else:
            found = f"{state.documents} documents, {state.chunks} chunks, {state.embedder}"
            checks.append(Check(f"index {state.name}", True, found))
    return checks


def cache_checks(joints: Joints) -> list[Check]:
    """What is kept and can be made again, and what of it was made by another version and is of no use any more."""
    checks = []
    for cache in caches.found():
        size = f"{amount(cache.size_bytes)} in {cache.folder}" if cache.entries else "empty"
        checks.append(Check(f"cache {cache.folder.name}", None, f"{size} ({cache.what})"))
    for path, size_bytes in caches.stale(joints.converter()):
        found = f"{shlex.quote(str(path))} was made by another version, {amount(size_bytes)}"
        checks.append(Check("stale cache", False, found, _CLEAN))
    return checks
