"""Says what the runs of Schemathesis came to, from their JSON reports; fails if one did not look at every operation but those
that its configuration leaves out by name."""

import json
import pathlib
import sys
import tomllib


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
    operations = reports[0]["operations"]["tested"]
    cases = sum(report["test_cases"]["generated"] for report in reports)
    print(f"api-fuzz ok: {operations} operations, {cases} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
