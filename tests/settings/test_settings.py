"""A wrong setting is one line that names it and what is allowed."""

import os
from pathlib import Path

import pytest

from corevital_otel.settings import Settings, SettingsError, describe, faults, load, unknown


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"COREVITAL_{name.upper()}", raising=False)
    monkeypatch.delenv("COREVITAL_CONFIG", raising=False)


def test_defaults_are_those_of_the_contract() -> None:
    settings = load()
    assert (settings.enabled, settings.capture, settings.sample_rate, settings.risk_threshold) == (
        True,
        "on_risk",
        1.0,
        0.7,
    )
    assert (settings.db, settings.db_retention_days, settings.db_max_mb) == (Path("runs/corevital.db"), 30, 1024)
    assert (settings.profile, settings.log_format, settings.capture_content) == (None, "text", False)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ENABLED", "maybe", "0 or 1"),
        ("CAPTURE", "sometimes", "one of summary, full, on_risk"),
        ("SAMPLE_RATE", "1.5", "a number from 0 to 1"),
        ("SAMPLE_RATE", "nan", "a number from 0 to 1"),
        ("RISK_THRESHOLD", "high", "a number from 0 to 1"),
        ("HIGH_ENTROPY_BITS", "-1", "a number from 0 to 32"),
        ("DB_RETENTION_DAYS", "0", "a number above 0, up to 36500"),
        ("DB_RETENTION_DAYS", "99999", "a number above 0, up to 36500"),
        ("DB_MAX_MB", "0", "a number from 1 up"),
        ("LOG_FORMAT", "xml", "one of text, json"),
        ("CAPTURE_CONTENT", "2", "0 or 1"),
    ],
)
def test_a_wrong_value_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str) -> None:
    monkeypatch.setenv(f"COREVITAL_{name}", value)
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == f"COREVITAL_{name}={value!r} is not allowed: use {allowed}"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("COREVITAL_SAMPLE_RATIO", "did you mean COREVITAL_SAMPLE_RATE?"),
        ("corevital_captured", "did you mean COREVITAL_CAPTURE?"),
        ("COREVITAL_ZZZZ", "the README lists the settings"),
    ],
)
def test_an_unknown_setting_is_reported_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    for known in ("COREVITAL_CAPTURE", "COREVITAL_CONFIG", "corevital_db"):
        monkeypatch.setenv(known, "")
    assert unknown() == []
    monkeypatch.setenv(name, "1")
    assert unknown() == [f"{name}: unknown setting, ignored: {says}"]


def test_an_empty_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_DB", "")
    assert load().db is None


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "corevital.toml"
    file.write_text('capture = "full"\nsample_rate = 0.5\n')
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    monkeypatch.setenv("COREVITAL_SAMPLE_RATE", "0.25")
    assert (load().capture, load().sample_rate) == ("full", 0.25)


@pytest.mark.parametrize(
    ("content", "says"),
    [("captur = 'full'\n", "unknown setting 'captur'"), ("capture = ", "is no valid TOML"), (None, "cannot be read")],
)
def test_a_wrong_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, says: str
) -> None:
    file = tmp_path / "corevital.toml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    with pytest.raises(SettingsError, match=says) as error:
        load()
    assert "\n" not in str(error.value)


def test_a_folder_is_no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COREVITAL_CONFIG", str(tmp_path))
    with pytest.raises(SettingsError, match="cannot be read: name a readable TOML file"):
        load()


@pytest.mark.parametrize("name", ["db", "profile"])
def test_a_path_in_the_file_must_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    file = tmp_path / "corevital.toml"
    file.write_text(f"{name} = 5\n")
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    with pytest.raises(SettingsError, match=f"^COREVITAL_{name.upper()}='5' is not allowed: use a file's path"):
        load()


def test_the_readme_lists_every_setting_with_its_default() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    for name, default, _, meaning in describe():
        assert f"| `{name}` | `{default}` | {meaning} |" in readme


def toml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | bytes) -> str:
    file = tmp_path / "corevital.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prompt_hash_key = 1234567\n", "COREVITAL_PROMPT_HASH_KEY is not allowed: use a secret of any text"),
        ("prompt_hash_key = {a = '1234567'}\n", "COREVITAL_PROMPT_HASH_KEY is not allowed"),
        ("prompt_hash_key = '1234567\n", "is no valid TOML at "),
        ("prompt_hash_key = 1234567x\n", "is no valid TOML at line 1, column"),
        ("a.1234567 = 1\na.1234567 = 2\n", "is no valid TOML at line 2"),
        ("prompt_hash_key = [[1234567", "is no valid TOML"),
        ("api = " + "[" * 5000, "is no valid TOML"),
        (b"prompt_hash_key = '1234567\xff'\n", "is no valid TOML: save it in UTF-8"),
        ("# 1234567\n" * 200_000, "is larger than 1 MiB"),
        ("'\\u001b[2J' = 1\n", "unknown setting"),
        (f"'{'x' * 5000}' = 1\n", "unknown setting"),
        ("capture = '\\u001b[2J\u202e'\n", "COREVITAL_CAPTURE="),
        (f"capture = '{'x' * 5000}'\n", "COREVITAL_CAPTURE='xxx"),
        ('db = "a\\u0000b"\n', "COREVITAL_DB="),
        ("db_max_mb = 1e300\n", "COREVITAL_DB_MAX_MB="),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_no_secret_and_no_escape_of_the_file_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | bytes, says: str
) -> None:
    line = toml(monkeypatch, tmp_path, content)
    assert says in line
    assert "1234567" not in line


def test_a_secret_of_the_environment_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_PROMPT_HASH_KEY", "1234567")
    assert load().prompt_hash_key == "1234567"
    monkeypatch.setenv("COREVITAL_CAPTURE", "x")
    assert faults() == [
        ("COREVITAL_CAPTURE", "COREVITAL_CAPTURE='x' is not allowed: use one of summary, full, on_risk")
    ]


def test_all_faults_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "x")
    monkeypatch.setenv("COREVITAL_LOOP_TOKENS", "x")
    assert [name for name, _ in faults()] == ["COREVITAL_CAPTURE", "COREVITAL_LOOP_TOKENS"]


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "db"])
def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    default = getattr(load(), name)
    for value in ("", "  "):
        monkeypatch.setenv(f"COREVITAL_{name.upper()}", value)
        assert getattr(load(), name) == default
    file = tmp_path / "corevital.toml"
    file.write_text("capture = 'full'\n")
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    monkeypatch.setenv("COREVITAL_CAPTURE", "")
    assert load().capture == "full", "an empty variable overrides nothing"


def test_white_space_around_a_value_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", " full ")
    monkeypatch.setenv("COREVITAL_ENABLED", " TRUE\n")
    monkeypatch.setenv("COREVITAL_SAMPLE_RATE", "\t0.5")
    monkeypatch.setenv("COREVITAL_DB", "  ")
    assert (load().capture, load().enabled, load().sample_rate, load().db) == ("full", True, 0.5, None)


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corevital.toml").write_text("profile = '~/p.json'\n")
    monkeypatch.setenv("COREVITAL_CONFIG", "~/corevital.toml")
    monkeypatch.setenv("COREVITAL_DB", "~/c.db")
    assert (load().db, load().profile) == (tmp_path / "c.db", tmp_path / "p.json")
    assert Settings(db=Path("~/d.db")).db == tmp_path / "d.db"
    monkeypatch.setenv("COREVITAL_DB", "~root/c.db")
    assert load().db == Path("~root").expanduser() / "c.db"
    monkeypatch.setenv("COREVITAL_DB", "~nobody-of-this-name/c.db")
    with pytest.raises(SettingsError, match=r"^COREVITAL_DB='~nobody-of-this-name/c\.db' is not allowed"):
        load()
    monkeypatch.setenv("COREVITAL_CONFIG", "~nobody-of-this-name/c.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load()


def test_a_pipe_is_no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("COREVITAL_CONFIG", str(tmp_path / "pipe"))
    with pytest.raises(SettingsError, match="cannot be read: name a readable TOML file"):
        load()
    monkeypatch.delenv("COREVITAL_CONFIG")
    monkeypatch.setenv("COREVITAL_PROFILE", str(tmp_path / "pipe"))
    with pytest.raises(SettingsError, match=r"^COREVITAL_PROFILE=.* is not allowed: use a file's path$"):
        load()


def test_a_given_environment_is_read_instead_of_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "x")
    assert load({}).capture == "on_risk"
    assert load({"corevital_capture": "full"}).capture == "full"
