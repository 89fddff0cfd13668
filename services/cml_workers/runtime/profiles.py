"""The file of launch profiles, TOML, checked as a whole when a process starts: docs/profiles.md."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cml_contracts.texts import ProfileName, Region
from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import Image, Profile, RegionProfile, Volume, inconsistencies
from cml_workers.foundation.failures import ConfigurationError, did_you_mean

USER_DATA_FILE = "user_data_file"
"""What stands for ``user_data`` in the file: a path, from the file's own folder."""
MERGED = ("root_volume", "tags")
"""Tables of which a region may change single values; every other value of a region replaces the profile's."""

_FIELDS = frozenset(RegionProfile.model_fields) - {"user_data"} | {USER_DATA_FILE}
_FIELDS_WITHIN: Mapping[str, frozenset[str]] = {
    "image": frozenset(Image.model_fields),
    "root_volume": frozenset(Volume.model_fields),
}
_NAME: TypeAdapter[str] = TypeAdapter(ProfileName)
_REGION: TypeAdapter[str] = TypeAdapter(Region)

Table = dict[str, Any]


class ProfilesError(ConfigurationError):
    """The file does not make valid profiles; one line for each thing to fix."""


class _WrongError(Exception):
    """Lines about a part of the file, each with its place in it."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def read_profiles(path: Path, policy: Policy) -> dict[str, Profile]:
    """The profiles of the file, by name; ``policy``: what every launch of the deployment is held to.

    Raises:
        ProfilesError: it cannot be read, or what is in it cannot be launched.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ProfilesError(f"CML_PROFILES_FILE: {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfilesError(f"{path}: is not TOML: {error}") from error
    found, lines = {}, list(_unknown(content, {"profiles"}, ""))
    tables = content.get("profiles")
    if not isinstance(tables, dict) or not tables:
        lines.append("has no profile: each is a table [profiles.NAME]")
        tables = {}
    for name, table in tables.items():
        try:
            found[name] = _profile(path.parent, name, table, policy)
        except _WrongError as wrong:
            lines += wrong.lines
    if lines:
        raise ProfilesError("\n".join(f"{path}: {line}" for line in dict.fromkeys(lines)))
    return found


def _profile(folder: Path, name: str, table: Any, policy: Policy) -> Profile:
    place = f"profile {name}"
    _check(_NAME, name, place)
    tables = table.get("regions") if isinstance(table, dict) else None
    if not isinstance(tables, dict) or not tables:
        raise _WrongError(f"{place}: has no region: each is a table [profiles.{name}.regions.REGION]")
    common = {field: value for field, value in table.items() if field != "regions"}
    lines = list(_unknown(common, _FIELDS | {"regions"}, f"{place}, "))
    regions = {}
    for region, own in tables.items():
        try:
            regions[region] = _region(folder, place, region, common, own, policy)
        except _WrongError as wrong:
            lines += wrong.lines
    if lines:
        raise _WrongError(*lines)
    return Profile(name, regions)


def _region(folder: Path, place: str, region: str, common: Table, own: Any, policy: Policy) -> RegionProfile:
    here = f"{place}, region {region}"
    _check(_REGION, region, here)
    if not isinstance(own, dict):
        raise _WrongError(f"{here}: must be a table")
    lines = list(_unknown(own, _FIELDS, f"{here}, "))
    if policy.allowed_regions and region not in policy.allowed_regions:
        lines.append(f"{here}: is not among CML_ALLOWED_REGIONS: {', '.join(sorted(policy.allowed_regions))}")
    merged = {field: value for field, value in {**common, **own}.items() if field in _FIELDS}
    for field in MERGED:
        if isinstance(common.get(field), dict) and isinstance(own.get(field), dict):
            merged[field] = {**common[field], **own[field]}

    def where(field: str) -> str:
        """Of a value that the region does not have itself, all regions' errors are one."""
        return f"{here if field in own or field not in common else place}, {field}"

    if USER_DATA_FILE in merged:
        try:
            merged["user_data"] = _text(folder, merged.pop(USER_DATA_FILE))
        except _WrongError as wrong:
            lines += [f"{where(USER_DATA_FILE)}: {line}" for line in wrong.lines]
    try:
        made = RegionProfile.model_validate_json(json.dumps(merged, default=str))
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            field, *within = [str(each) for each in problem["loc"]]
            field = USER_DATA_FILE if field == "user_data" else field
            lines.append(
                f"{where(field)}{''.join(f'[{each}]' for each in within)}: {_meaning(problem, field)}"
            )
        raise _WrongError(*lines) from error
    lines += [f"{here}, {line}" for line in inconsistencies(region, made, policy.default_tags)]
    if policy.allowed_instance_types:
        lines += [
            f"{where('instance_types')}: {each} is not among CML_ALLOWED_INSTANCE_TYPES"
            for each in made.instance_types
            if each not in policy.allowed_instance_types
        ]
    if lines:
        raise _WrongError(*lines)
    return made


def _unknown(table: Table, known: AbstractSet[str], place: str) -> Iterator[str]:
    for field in sorted(table.keys() - known):
        yield f"{place}{field}: {_no_field(field, known)}"


def _no_field(name: str, known: AbstractSet[str]) -> str:
    hint = did_you_mean(name, known) or f"; there are: {', '.join(sorted(known))}"
    return f"there is no such field{hint}"


def _check(form: TypeAdapter[str], text: str, place: str) -> None:
    try:
        form.validate_python(text)
    except ValidationError as error:
        raise _WrongError(f"{place}: {_meaning(error.errors()[0], '')}") from error


def _meaning(problem: ErrorDetails, field: str) -> str:
    if problem["type"] == "extra_forbidden":
        return _no_field(str(problem["loc"][-1]), _FIELDS_WITHIN.get(field, frozenset()))
    if problem["type"] == "missing":
        return "is missing"
    return problem["msg"].removeprefix("Value error, ")


def _text(folder: Path, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise _WrongError("must be the path of a file, from the folder of this one")
    path = folder / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _WrongError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _WrongError(f"{path} is not text in UTF-8") from error
