"""What is in the wheels that the image is made of."""

from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("project", "packages"),
    [(ROOT, {"cml_workers", "cml_embedded"}), (ROOT / "contracts", {"cml_contracts"})],
    ids=["service", "contracts"],
)
def test_a_wheel_has_its_packages_and_nothing_else(project: Path, packages: set[str], tmp_path: Path):
    (wheel,) = WheelBuilder(str(project)).build(directory=str(tmp_path), versions=["standard"])
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == packages
    for package in packages:
        source = (project / "services" if (project / "services").is_dir() else project) / package
        assert {name for name in names if name.startswith(f"{package}/")} == {
            str(path.relative_to(source.parent))
            for path in source.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
