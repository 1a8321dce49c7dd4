"""A wrong setting is one line that names it and what is allowed."""

from pathlib import Path

import pytest

from corevital_otel.settings import Settings, SettingsError, describe, load, unknown


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
