"""The bill of materials of a release: what the wheel needs, in the versions that the tests ran with, and contains.

``python -m integration.harness.sbom WHEEL ENVIRONMENT OUT``, with the Python of `.venv-sbom`, which has `cyclonedx-py`.
`make sbom` makes both. ENVIRONMENT is one with the wheel, all its extras, and nothing else. What `cyclonedx-py` writes
of it has neither the wheel's version and checksum nor the scripts of the page, which npm's packages in the wheel are.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[2]
VERSION: Final = "1.6"
"""Of CycloneDX."""
LICENCES: Final = {"htmx.org": "0BSD", "uplot": "MIT"}
"""Of the scripts; their texts are in the wheel beside them."""


def main(arguments: list[str]) -> int:
    """Write the bill; exit status 1 where it does not conform to its schema."""
    wheel, environment, out = map(Path, arguments)
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", str(environment / "bin/python"),
               "--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--sv", VERSION]  # fmt: skip
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    bill = json.dumps(completed(json.loads(made), wheel, scripts()), indent=2) + "\n"
    if problem := invalid(bill):
        print(f"{out} would not conform to CycloneDX {VERSION}: {problem}", file=sys.stderr)
        return 1
    out.write_text(bill)
    count = len(json.loads(bill)["components"])
    print(f"{out}: {count} components of {wheel.name}")
    return 0


def scripts() -> dict[str, str]:
    """npm's packages in the wheel, ``name@version``, and the SHA-256 of each archive, as hatch_build.py has them."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text())
    (found,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    )
    return {package: digest for package, (digest, _) in ast.literal_eval(found).items()}


def completed(bill: dict[str, Any], wheel: Path, packages: dict[str, str]) -> dict[str, Any]:
    """A bill with the wheel's version and checksum, with the scripts, and with no path of this machine.

    Raises:
        ValueError: it has a component of an unknown licence.
    """
    root = bill["metadata"]["component"]
    root |= {"version": wheel.name.split("-")[1], "hashes": [sha256(hashlib.sha256(wheel.read_bytes()).hexdigest())]}
    for component in bill["components"]:
        references = component.get("externalReferences", [])
        component["externalReferences"] = [one for one in references if not one["url"].startswith("file:")]
    needed = next(one for one in bill["dependencies"] if one["ref"] == root["bom-ref"])
    for package, digest in packages.items():
        name, _, version = package.rpartition("@")
        if name not in LICENCES:
            raise ValueError(f"{name} has no licence here: add it to LICENCES in {Path(__file__).name}")
        bill["components"].append(
            {
                "bom-ref": package, "type": "library", "name": name, "version": version,
                "purl": f"pkg:npm/{name}@{version}", "hashes": [sha256(digest)],
                "licenses": [{"license": {"id": LICENCES[name]}}],
            }
        )  # fmt: skip
        bill["dependencies"].append({"ref": package})
        needed.setdefault("dependsOn", []).append(package)
    return bill


def sha256(digest: str) -> dict[str, str]:
    """A checksum as CycloneDX writes it."""
    return {"alg": "SHA-256", "content": digest}


def invalid(bill: str) -> str | None:
    """What is wrong with a bill by CycloneDX's own schema, if anything."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.from_version(VERSION)).validate_str(bill)
    return None if error is None else str(error)[:500]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
