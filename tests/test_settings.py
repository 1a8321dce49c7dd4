"""A wrong setting is one line that names it and what is allowed."""

import json
import os
from pathlib import Path

import pytest

from corevital_otel.settings import HTTP_OF_A_HUB, Settings, SettingsError, describe, load, problems, unknown


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
        ("STOP_ON", "loop,everything", "some of nan, loop, alarm, comma-separated, or none"),
        ("CAPTURE_CONTENT", "2", "0 or 1"),
    ],
)
def test_a_wrong_value_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str) -> None:
    monkeypatch.setenv(f"COREVITAL_{name}", value)
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == f"COREVITAL_{name}={value!r} is not allowed: use {allowed}"


def test_what_ends_a_sequence_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().stops == ()
    for value, found in (("loop, nan", ("nan", "loop")), ("none", ()), ("", ())):
        monkeypatch.setenv("COREVITAL_STOP_ON", value)
        assert load().stops == found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("COREVITAL_SAMPLE_RATIO", "did you mean COREVITAL_SAMPLE_RATE?"),
        ("corevital_captured", "did you mean COREVITAL_CAPTURE?"),
        ("COREVITAL_ZZZZ", "docs/reference/settings.md lists the settings"),
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
    [("captur = 'full'\n", "unknown setting 'captur'"), ("capture = ", "is not valid TOML"), (None, "cannot be read")],
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


def test_a_folder_is_not_a_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COREVITAL_CONFIG", str(tmp_path))
    with pytest.raises(SettingsError, match="cannot be read: name a readable TOML file"):
        load()


def test_what_engines_read_before_any_file_is_refused_in_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert toml(monkeypatch, tmp_path, "attach = 'sglang'\n") == (
        "COREVITAL_CONFIG: attach counts only in the environment: set COREVITAL_ATTACH"
    )


@pytest.mark.parametrize("name", ["db", "profile"])
def test_a_path_in_the_file_must_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    file = tmp_path / "corevital.toml"
    file.write_text(f"{name} = 5\n")
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    with pytest.raises(SettingsError, match=f"^COREVITAL_{name.upper()}='5' is not allowed: use a file's path"):
        load()


def test_the_docs_list_every_setting_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/reference/settings.md").read_text()
    for name, default, _, meaning in describe():
        assert f"| `{name}` | `{default}` | {meaning} |" in page


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
        ("prompt_hash_key = '1234567\n", "is not valid TOML at "),
        ("prompt_hash_key = 1234567x\n", "is not valid TOML at line 1, column"),
        ("a.1234567 = 1\na.1234567 = 2\n", "is not valid TOML at line 2"),
        ("prompt_hash_key = [[1234567", "is not valid TOML"),
        ("api = " + "[" * 5000, "is not valid TOML"),
        (b"prompt_hash_key = '1234567\xff'\n", "is not valid TOML: save it in UTF-8"),
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
    assert problems() == [
        ("COREVITAL_CAPTURE", "COREVITAL_CAPTURE='x' is not allowed: use one of summary, full, on_risk")
    ]


def test_all_faults_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "x")
    monkeypatch.setenv("COREVITAL_LOOP_TOKENS", "x")
    assert [name for name, _ in problems()] == ["COREVITAL_CAPTURE", "COREVITAL_LOOP_TOKENS"]


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


def test_a_pipe_is_not_a_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


# The hub's addresses and secrets

HOST = "where HOST is an IPv4 address, an IPv6 address in brackets, or a name"
KEY = "0123456789abcdef"


def test_a_hub_s_address_has_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_HUB_KEY", KEY)
    for value in (
        "tcp://10.0.0.1:5557",
        "tcp://[2001:DB8::1]:1",
        "tcp://hub.my-ns.svc.cluster.local:65535",
        "tcp://hub_1:5557",
    ):
        monkeypatch.setenv("COREVITAL_HUB", value)
        assert load().hub == value.lower()


@pytest.mark.parametrize(
    "value",
    [
        "10.0.0.1:5557", "tcp://10.0.0.1", "tcp://10.0.0.1:", "tcp://10.0.0.1:0", "tcp://10.0.0.1:65536", "tcp://:5557",
        "tcp://2001:db8::1:5557", "tcp://[10.0.0.1]:5557", "tcp://[x]:5557", "tcp://10.0.0.256:5557", "tcp://1.2.3:5557",
        "tcp://-a:5557", "tcp://a..b:5557", "tcp://a b:5557", "tcp://user@host:5557", "tcp://host:5557/path",
        "http://host:5557", "TCP://host:5557", "tcp://*:5557", "tcp://host:\u0665", "tcp://" + "a" * 64 + ":1",
        "tcp://" + "a." * 200 + "b:1", "tcp://hé:1", "tcp://[::1]:5557\n", "tcp://host:5557\x00", "ipc://x",
    ],
    ids=lambda value: value[:25],
)  # fmt: skip
def test_another_form_of_a_hub_s_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setenv("COREVITAL_HUB_KEY", KEY)
    file = tmp_path / "corevital.toml"
    file.write_text(f"hub = {json.dumps(value)}\n")
    monkeypatch.setenv("COREVITAL_CONFIG", str(file))
    ((name, line),) = problems()
    assert name == "COREVITAL_HUB"
    assert line.startswith("COREVITAL_HUB=")
    assert line.endswith(f" is not allowed: use tcp://HOST:PORT, {HOST}")
    assert line.isprintable()


def test_without_a_key_no_hub_on_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_HUB", "tcp://hub:5557")
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == (
        "COREVITAL_HUB=tcp://hub:5557 needs COREVITAL_HUB_KEY, the same on all hosts: set it to a secret such as the "
        "output of `openssl rand -hex 32`"
    )
    assert problems() == [("COREVITAL_HUB", str(error.value))]
    monkeypatch.setenv("COREVITAL_HUB_KEY", KEY)
    assert load().hub_key == KEY
    monkeypatch.setenv("COREVITAL_HUB_KEY", KEY[1:])
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == (
        "COREVITAL_HUB_KEY is not allowed: use a secret of 16 characters or more, such as the output of "
        "`openssl rand -hex 32`"
    )


def test_the_http_port_is_off_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().http_address() is None
    assert load().http_address(HTTP_OF_A_HUB) == ("127.0.0.1", 9464)
    monkeypatch.setenv("COREVITAL_HTTP", "none")
    assert load().http_address(HTTP_OF_A_HUB) is None
    monkeypatch.setenv("COREVITAL_HTTP", "[::1]:80")
    assert load().http_address(HTTP_OF_A_HUB) == ("::1", 80)
    monkeypatch.setenv("COREVITAL_HTTP", "9464")
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == f"COREVITAL_HTTP='9464' is not allowed: use HOST:PORT, {HOST}; or none"


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "[::]:9464", "10.1.2.3:9464", "myhost:9464", "[fe80::1]:9464"])
def test_other_hosts_need_a_token(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("COREVITAL_HTTP", address)
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == (
        f"COREVITAL_HTTP={address} can be reached from other hosts and needs COREVITAL_HTTP_TOKEN: set it to a secret "
        "such as the output of `openssl rand -hex 32`, or listen at 127.0.0.1:9464"
    )
    monkeypatch.setenv("COREVITAL_HTTP_TOKEN", "1234567")
    assert str(load().http_address()) == address


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "127.8.9.1:9464", "[::1]:9464", "localhost:9464", "LOCALHOST:1"])
def test_this_host_alone_needs_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("COREVITAL_HTTP", address)
    assert load().http_address().is_loopback


@pytest.mark.parametrize("value", ["123 4567", "1234567é", "1234567\x1b", "1234567\n8"])
def test_a_token_can_be_sent_in_a_header(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("COREVITAL_HTTP_TOKEN", value)
    with pytest.raises(SettingsError) as error:
        load()
    assert str(error.value) == (
        "COREVITAL_HTTP_TOKEN is not allowed: use a secret of printable ASCII characters without spaces"
    )


def test_what_we_set_for_our_processes_is_not_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_ENGINE_KEY", KEY)
    assert unknown() == []
    assert problems() == []
