"""Says what the runs of Schemathesis came to, from their JSON reports; fails if one did not look at every operation but those
that its configuration leaves out by name, or if the first had nothing accepted of an operation that can be."""

import json
import pathlib
import sys
import tomllib


# What need not be accepted here, and why.
NEVER = {
    "POST /api/v1/messages": "it is refused to everybody, and says so",
    "PUT /api/v1/messages/{id}": "the same",
    "DELETE /api/v1/messages/{id}": "the same",
    "DELETE /api/v1/sessions/{id}": "the same",
    "POST /api/v1/agent/{id}/run": "it answers when an agent has ended, so none is asked",
    "POST /api/v1/{surface}/claude-code/run/{id}/add-message": "no run lives for long enough",
    "POST /api/v1/{surface}/claude-code/run/{id}/inject-message": "the same",
    "POST /v1/runs/{id}/inputs": "the same",
    "POST /v1/runs/{id}/approvals/{approval}": "no agent here asks for one",
    "DELETE /v1/servers/{id}": "there is this server alone, which lives",
}


def left_out() -> int:
    config = tomllib.loads((pathlib.Path(__file__).parent / "schemathesis.toml").read_text(encoding="utf-8"))
    names: set[str] = set()
    for operations in config["operations"]:
        if operations.get("enabled") is False:
            named = operations["include-operation-id"]
            names.update([named] if isinstance(named, str) else named)
    return len(names)


def main() -> int:
    reports = [json.load(open(path, encoding="utf-8")) for path in sys.argv[1:]]
    for path, report in zip(sys.argv[1:], reports):
        operations = report["operations"]
        clean = report["complete"] and report["exit_code"] == 0 and not report["failures"] and not report["errors"]
        wanted = operations["total"] - left_out()
        if not clean or operations["tested"] == 0 or operations["tested"] != wanted:
            print(f"api-fuzz: {path}: {operations}, complete: {report['complete']}", file=sys.stderr)
            return 1
    rates = reports[0]["valid_rates"]
    never = {name for name, phases in rates.items() if not any(phase["accepted"] for phase in phases.values())}
    # Of these something may be accepted by chance: a run may live just then.
    never -= NEVER.keys()
    if never or len(rates) != reports[0]["operations"]["tested"]:
        print(f"api-fuzz: nothing was accepted of {sorted(never)}; rates of {len(rates)} operations", file=sys.stderr)
        return 1
    operations = reports[0]["operations"]["tested"]
    cases = sum(report["test_cases"]["generated"] for report in reports)
    print(f"api-fuzz ok: {operations} operations, {cases} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
