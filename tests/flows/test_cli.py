"""The commands' contract: names, exit codes, one clear line for what a user got wrong, JSON for programs."""

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import pytest
from fsspec.registry import _registry
from sqlalchemy import Connection, update

from flows.cli import build_parser, main
from flows.commands.campaigns import _ingested
from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.ingest.scan import ingest
from pipeline.models import create_model, save_checkpoint
from pipeline.storage import adapters, requests
from pipeline.storage.campaigns import get_campaign
from pipeline.storage.database import Database, open_database
from pipeline.storage.lock import WorkspaceLock
from schemas.campaigns import CampaignRecord
from schemas.columns import db_now
from schemas.settings import Settings
from schemas.tables import Adapter, Token
from tests.flows.scenes import write_pictures

HERE = {**os.environ, "PYTHONPATH": os.getcwd()}
CONTRACT = """serve; campaign create; campaign list; campaign status; campaign pause; campaign resume; precompute;
simulate; retrain; adapter list; adapter show; adapter promote; adapter rollback; export; replay; evaluate; predict;
model list; model convert; train; token create; token list; token revoke; db upgrade; doctor; snapshot verify;
workers; backup; restore; import; propose; prelabel; order; purge annotator; purge campaign; purge image;
purge list; gc"""


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command's parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from leaves(child)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = main(list(words))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_of_the_contract_is_there_with_help_json_and_workspace() -> None:
    known = {parser.prog.removeprefix("clickloop "): parser for parser in leaves(build_parser())}
    assert {" ".join(command.split()) for command in CONTRACT.split(";")} <= known.keys()
    for parser in known.values():
        assert "--json" in parser.format_help() and "--workspace" in parser.format_help()


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"clickloop {version('clickloop')}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        "campain list",
        "campaign",
        "campaign create",
        "precompute",
        "simulate c --truth nowhere.json",
        "simulate c --truth t.json --target 1.5",
        "simulate c --truth t.json --annotators 0",
        "export c --to out --format voc",
        "export c --to out --since noon",
        "export c --to out --val 1.5",
        "export c --to out --state lost",
        "prelabel c --grid 0",
        "prelabel c --min-score 2",
        "prelabel c --limit 0",
        "order c",
        "order c --by luck",
        "retrain c --promote maybe",
        "predict --image x.png --click 1,2 --out m.png",
        "predict --image x.png --click 1,nan,+ --out m.png",
        "predict --image x.png --click 1,2,+- --out m.png",
        "predict --image . --click 1,2,+ --out m.png",
        "evaluate --data x.json --images . --target-size 7",
        "evaluate --data x.json --images . --out .",
        "compare toy-color --data x.json --images . --out .",
        "predict --image nowhere.png --click 1,2,+ --out m.png",
        "predict --model nothing --image nowhere.png --click 1,2,+ --out m.png",
        "evaluate --data nowhere.json --images .",
        "model convert --from nowhere.pth --to m.safetensors",
        "train nothing",
        "train cpu-small --minutes -1",
        "token create ann --scopes label,sudo",
        "campaign create c --images nowhere --labels a,a",
        "campaign create c --images nowhere --model toy-color",
        "campaign create c --images . --model nothing",
        "campaign create c --images . --annotations nowhere.json",
        "import c nowhere.json",
        "campaign create c --images . --window 5 1",
        "campaign create c --images . --window nan 1",
        "campaign create c --images . --model toy-color --holdout 2",
        "campaign create c --images . --model toy-color --retrain-every -1",
        "campaign create a/b --images . --model toy-color",
        "campaign create .. --images . --model toy-color",
        "retrain c --minutes nan",
        "token create ann --days soon",
        "token create ann --days 99999999999",
        "gc --older-than 99999999999",
        "campaign list",
        "campaign status c",
        "adapter list c",
        "replay c",
    ],
)
def test_wrong_usage_and_bad_input_exit_2_with_one_clear_line(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words.split())
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("clickloop")
    assert not any(word in err for word in ("Traceback", "Value error", "positive_int", ".. See"))


@pytest.mark.parametrize("words", ["campaign create c --images", "snapshot verify", "restore"])
@pytest.mark.parametrize(("protocol", "package", "extra"), [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")])
def test_an_object_store_whose_client_is_not_installed_says_what_to_install(
    words: str,
    protocol: str,
    package: str,
    extra: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(_registry, protocol, raising=False)  # of what was imported
    code, out, err = run(capsys, *words.split(), f"{protocol}://bucket/photos")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"pip install 'clickloop[{extra}]'" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("campaign", "create", "c", "--images", ""), "A path or URL is empty."),
        (("campaign", "create", "c", "--images", ".", "--annotations", ""), "A path or URL is empty."),
        (("campaign", "ingest", "c", "--images", ""), "A path or URL is empty."),
        (("import", "c", ""), "A path or URL is empty."),
        (("export", "c", "--to", ""), "A path or URL is empty."),
        (("snapshot", "verify", ""), "A path or URL is empty."),
        (("restore", ""), "A path or URL is empty."),
        (("campaign", "list", "--workspace", ""), "--workspace is empty, as from a variable that is not set."),
        (("evaluate", "--data", __file__, "--images", ""), "--images : the folder of the images"),
        (("train", "cpu-small", "--data", ""), "Training data does not exist."),
        (("train", "cpu-small", "--resume", ""), "Checkpoint does not exist."),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2 and told in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["campaign pause c", "campaign resume c", "precompute c", "export c --to out"])
def test_a_wrong_workspace_is_said_and_nothing_made_there(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words.split(), "--workspace", str(tmp_path / "typo"))
    assert code == 2 and "There is no database at" in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_utf8_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*args: Any) -> None:
        "\udcff".encode()  # as Prefect's client does with what a flow is called with

    monkeypatch.setattr("flows.commands.campaigns.run_here", send)
    words = ("campaign", "create", "c", "--images", str(tmp_path), "--labels", "\udcff")
    code, _, err = run(capsys, *words, "--workspace", str(tmp_path / "workspace"))
    assert code == 2 and "not valid UTF-8" in err


def test_a_bad_setting_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, told in (
        ("CLICKLOOP_PORT", "many", "many"),
        ("CLICKLOOP_ENGINE", "steam", "onnx-float32"),
        ("CLICKLOOP_LOG_LEVEL", "LOUD", "'WARNING'"),
        ("CLICKLOOP_ALLOWED_HOSTS", "['localhost']", "JSON"),
        ("CLICKLOOP_DATABASE_URL", "sqlite://", "SQLite needs a file"),
    ):
        with monkeypatch.context() as here:
            here.setenv(name, value)
            code, _, err = run(capsys, "campaign", "list")
        assert code == 2 and err.count("\n") == 1
        assert told in err and (name in err or name == "CLICKLOOP_DATABASE_URL")


def test_a_log_level_may_be_written_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKLOOP_LOG_LEVEL", "warning")
    assert Settings().log_level == "WARNING"


@pytest.mark.parametrize("content", [None, "x = [", "workspce = '/tmp/x'", b"\xff"])
def test_a_file_of_settings_that_would_be_passed_over_is_refused(
    content: str | bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "clickloop.toml"
    if content is not None:
        config.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setenv("CLICKLOOP_CONFIG", str(config))
    code, out, err = run(capsys, "campaign", "list")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "CLICKLOOP_CONFIG" in err and str(config) in err


@pytest.mark.parametrize(
    "words", ["campaign create c --images . --model toy-color", "db upgrade", "token create ann", "restore ."]
)
def test_a_workspace_that_cannot_be_made_is_named(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    code, out, err = run(capsys, *words.split(), "--workspace", str(taken / "workspace"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(taken) in err


def test_a_workspace_that_cannot_be_looked_at_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["campaign", "list"], ["gc"], ["backup", str(tmp_path / "backup")]):
        code, out, err = run(capsys, *words, "--workspace", str(tmp_path / ("n" * 300)))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "Cannot look for" in err and "File name too long. Name another workspace" in err


def test_the_file_that_keeps_a_command_from_the_workspace_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").mkdir()
    code, out, err = run(capsys, "db", "upgrade", "--workspace", str(tmp_path))
    assert (code, out) == (2, "")
    assert f"Cannot write to the workspace {tmp_path}: Is a directory ({tmp_path}/lock)." in err


def test_a_campaign_of_a_file_that_is_no_image_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = tmp_path / "labels.json"
    labels.write_text("{}")
    code, _, err = run(capsys, "campaign", "create", "c", "--images", str(labels), "--model", "toy-color")
    assert code == 2 and "no image by its name" in err


def test_the_same_create_goes_on_with_a_campaign_whose_making_was_interrupted(
    settings: Settings,
    database: Database,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, made = ["cancelled", "failed", "done"], []

    def run_here(settings: Settings, terminal: object, kind: str, campaign: None, payload: dict[str, Any]) -> None:
        made.append(payload["create"]["id"])
        create_campaign(database, settings.resolved_storage_url, CampaignSpec.model_validate(payload["create"]))
        with database.begin() as conn:
            asked = requests.insert_request(conn, str(uuid4()), kind, campaign, payload)
            requests.claim_request(conn, "me", request_id=asked.id)
            requests.finish_request(conn, asked.id, "me", ended[len(made) - 1])
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.campaigns.run_here", run_here)
    where = ["--images", str(write_pictures(tmp_path, 1)), "--workspace", str(settings.workspace)]
    words = ["campaign", "create", "c", "--model", "toy-color", *where]
    for _ in ended:
        code, _, said = run(capsys, *words, "--labels", "disc")
        assert (code, said) == (130, "clickloop: interrupted\n")
        assert "already" in run(capsys, *words)[2]  # another one
    assert len(made) == 3 and len(set(made)) == 1
    assert "already" in run(capsys, *words, "--labels", "disc")[2]  # it is there, whole
    assert len(made) == 3


def test_a_workspace_from_a_variable_that_is_not_set_is_not_the_current_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLICKLOOP_WORKSPACE", "")
    code, _, err = run(capsys, "db", "upgrade")
    assert code == 2 and "CLICKLOOP_WORKSPACE: it is empty" in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_a_folder_and_a_folder_for_a_file_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, _, err = run(capsys, "train", "cpu-small", "--steps", "1", "--out", str(tmp_path / "file"))
    assert code == 2 and "is a file" in err
    code, _, err = run(capsys, "simulate", "c", "--truth", str(tmp_path))
    assert code == 2 and "is not a file" in err


def test_adapters_are_found_by_numbers_of_any_length(
    campaign: CampaignRecord, database: Database, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.begin() as conn:
        for digest, number in (("1001" + "a" * 60, 1000), ("b" * 64, 1001), ("1002" + "c" * 60, 1002)):
            adapters.register_adapter(
                conn, digest=digest, campaign_id=campaign.id, kind="head", uri="", seed=0, parent_digest=None,
                model_digest=campaign.model_digest, model_key=campaign.model_key, snapshot_id=None,
            )  # fmt: skip
            conn.execute(update(Adapter).where(Adapter.digest == digest).values(number=number))
    for text, found in (("1000", "1001aaaa"), ("1001", None), ("1001a", "1001aaaa"), ("1002", "1002cccc")):
        code, out, err = run(capsys, "adapter", "show", "discs", text, "--workspace", str(settings.workspace))
        assert (code, found or "2 adapters") == (0 if found else 2, found or "2 adapters")
        assert (found in out) if found else ("2 adapters" in err)


def test_unknown_campaigns_sessions_and_adapters_exit_2(
    campaign: CampaignRecord, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(settings.workspace)]
    for words in (
        ["campaign", "status", "none"],
        ["campaign", "pause", "none"],
        ["precompute", "none"],
        ["prelabel", "none"],
        ["order", "none", "--by", "plain"],
        ["export", "none", "--to", "x"],
        ["adapter", "show", "discs", "7"],
        ["adapter", "promote", "discs", "abcdef"],
        ["token", "revoke", "none"],
        ["purge", "annotator", "none", "--yes"],
        ["purge", "annotator", ""],
        ["purge", "campaign", "none", "--yes"],
        ["purge", "image", "none", "1", "--dry-run"],
        ["purge", "image", "discs", "99", "--yes"],
    ):
        code, _, err = run(capsys, *words, *where)
        assert (code, err.count("\n")) == (2, 1), words


def test_a_failure_of_the_work_exits_1(
    campaign: CampaignRecord, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(settings.workspace)]
    assert run(capsys, "adapter", "rollback", "discs", *where)[0] == 1  # nothing was promoted
    assert run(capsys, "campaign", "create", "discs", "--images", ".", *where)[0] == 1  # the name is taken
    with WorkspaceLock(settings.workspace):
        code, _, err = run(capsys, "campaign", "pause", "discs", *where)
    assert code == 1
    assert "in use by process" in err


def test_weights_that_do_not_load_are_not_promoted_and_going_back_to_them_is_said(
    campaign: CampaignRecord, database: Database, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(conn: Connection, seed: int) -> str:
        adapters.register_adapter(
            conn, digest=f"{seed:064x}", campaign_id=campaign.id, kind="head", uri="", seed=seed, parent_digest=None,
            model_digest=campaign.model_digest, model_key=campaign.model_key, snapshot_id=None,
        )  # fmt: skip
        adapters.set_gate(conn, f"{seed:064x}", "candidate", {"promote": True})
        return f"{seed:064x}"

    where = ["--workspace", str(settings.workspace)]
    with database.begin() as conn:
        lost = add(conn, 1)
    code, _, err = run(capsys, "adapter", "promote", "discs", "1", *where)
    assert code == 2 and lost in err
    with database.begin() as conn:
        conn.execute(update(Adapter).where(Adapter.digest == add(conn, 3)).values(removed_at=db_now()))
    code, _, err = run(capsys, "adapter", "promote", "discs", "2", *where)
    assert code == 1 and "were removed by `clickloop gc` on" in err
    with database.begin() as conn:
        adapters.promote(conn, campaign.id, lost, 0)
        adapters.promote(conn, campaign.id, add(conn, 2), 1)
    code, out, _ = run(capsys, "adapter", "rollback", "discs", *where)
    assert code == 0 and out.startswith("Live: 00000000000000 (version 3).") and "does not load: There is no" in out
    assert run(capsys, "adapter", "rollback", "discs", *where)[1] == "Live: the bare model (version 4).\n"


def test_a_rollback_that_is_interrupted_while_weights_load_changes_nothing(
    campaign: CampaignRecord,
    database: Database,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = "1" * 64
    with database.begin() as conn:
        adapters.register_adapter(
            conn, digest=digest, campaign_id=campaign.id, kind="head", uri="", seed=1, parent_digest=None,
            model_digest=campaign.model_digest, model_key=campaign.model_key, snapshot_id=None,
        )  # fmt: skip
        adapters.set_gate(conn, digest, "candidate", {"promote": True})
        adapters.promote(conn, campaign.id, digest, 0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    words = ["adapter", "rollback", "discs", "--workspace", str(settings.workspace)]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.weights.load_model_by_digest", interrupted)
        assert run(capsys, *words)[0] == 130
    with database.connect() as conn:
        assert get_campaign(conn, campaign.id).live_adapter == digest
    assert run(capsys, *words)[:2] == (0, "Live: the bare model (version 2).\n")


def test_looking_works_while_another_process_owns_the_workspace(
    campaign: CampaignRecord, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with WorkspaceLock(settings.workspace):
        code, out, _ = run(capsys, "campaign", "list", "--json", "--workspace", str(settings.workspace))
    assert code == 0
    assert [c["name"] for c in json.loads(out)] == ["discs"]


def test_status_names_every_quarantined_file_with_its_reason(
    settings: Settings, campaign: CampaignRecord, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(campaign.source_url)
    for number in range(25):
        (folder / f"bad-{number:02d}.tif").write_text("no picture")
    ingest(database, campaign, campaign.source_url)
    workspace = ("--workspace", str(settings.workspace))
    code, out, _ = run(capsys, "campaign", "status", "discs", *workspace)
    assert code == 0 and "25 quarantined" in out
    lines = [line for line in out.splitlines() if line.startswith("quarantined ")]
    assert [f"bad-{number:02d}.tif: Neither" in line for number, line in enumerate(lines)] == [True] * 25
    for number in range(25):
        cv2.imwrite(str(folder / f"bad-{number:02d}.tif"), cv2.imread(str(folder / "1.png")) // (number + 2))
    assert ingest(database, campaign, campaign.source_url).registered == 25
    assert "0 quarantined" in run(capsys, "campaign", "status", "discs", *workspace)[1]


def test_status_says_to_the_end_why_a_request_failed(
    settings: Settings, campaign: CampaignRecord, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.begin() as conn:
        asked = requests.insert_request(conn, str(uuid4()), "precompute", campaign.id, {})
        requests.claim_request(conn, "me", request_id=asked.id)
        requests.finish_request(conn, asked.id, "me", "failed", error=f"{'It is full. ' * 20}Make room.")
    assert "Make room.\n" in run(capsys, "campaign", "status", "discs", "--workspace", str(settings.workspace))[1]


def test_ingest_says_how_many_images_moved(campaign: CampaignRecord, database: Database) -> None:
    (Path(campaign.source_url) / "1.png").rename(Path(campaign.source_url) / "one.png")
    told = [_ingested(ingest(database, campaign, campaign.source_url).model_dump(mode="json")) for _ in range(2)]
    assert told == [
        [
            "0 images registered, 1 duplicates, 3 unchanged, 0 quarantined.",
            "1 images moved: they are read from where their files are now.",
        ],
        ["0 images registered, 0 duplicates, 4 unchanged, 0 quarantined."],
    ]


def test_status_and_pause_say_the_same_as_json_and_as_text(
    campaign: CampaignRecord, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(settings.workspace)]
    assert run(capsys, "campaign", "pause", "discs", *where)[0] == 0
    status = json.loads(run(capsys, "campaign", "status", "discs", "--json", *where)[1])
    assert (status["images"], status["campaign"]["state"], status["tasks"]["new"]) == (4, "paused", 4)
    text = run(capsys, "campaign", "status", "discs", *where)[1]
    assert "discs: paused, model toy-color" in text and "4 new" in text
    assert run(capsys, "campaign", "resume", "discs", *where)[0] == 0


def test_a_token_is_shown_once_and_revoked(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--json", "--workspace", str(settings.workspace)]
    made = json.loads(run(capsys, "token", "create", "ann", "--scopes", "label,export", *where)[1])
    listed = run(capsys, "token", "list", *where)[1]
    assert made["token"] not in listed
    assert [(t["id"], t["revoked_at"]) for t in json.loads(listed)] == [(made["id"], None)]
    assert run(capsys, "token", "revoke", made["id"], *where)[0] == 0
    assert json.loads(run(capsys, "token", "list", *where)[1])[0]["revoked_at"] is not None


def test_a_token_that_has_expired_is_not_listed_as_valid(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(settings.workspace)]
    run(capsys, "token", "create", "ann", *where)
    run(capsys, "token", "create", "bob", "--days", "1", *where)
    with closing(open_database(settings.resolved_database_url)) as database, database.begin() as conn:
        past = datetime.now(UTC) - timedelta(hours=1)
        conn.execute(update(Token).where(Token.expires_at.is_not(None)).values(expires_at=past))
    listed = run(capsys, "token", "list", *where)[1].splitlines()
    assert sorted(line.split()[-1] for line in listed[1:]) == ["expired", "valid"]


def test_purging_an_annotator_asks_first(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--json", "--workspace", str(settings.workspace)]
    run(capsys, "token", "create", "ann", *where)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))  # a pipe is nobody to ask
    code, _, err = run(capsys, "purge", "annotator", "ann", *where)
    assert (code, "Say --yes" in err) == (2, True)
    assert [t["annotator"] for t in json.loads(run(capsys, "token", "list", *where)[1])] == ["ann"]
    done = json.loads(run(capsys, "purge", "annotator", "ann", "--yes", *where)[1])
    assert done["tokens"] == 1 and done["pseudonym"].startswith("annotator-")
    assert json.loads(run(capsys, "token", "list", *where)[1]) == []


def test_gc_counts_and_never_makes_a_database(
    campaign: CampaignRecord, settings: Settings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ["--json", "--workspace", str(settings.workspace)]
    with WorkspaceLock(settings.workspace):  # as beside `serve`
        code, out, _ = run(capsys, "gc", *where)
    nothing = {"files": 0, "size_bytes": 0}
    kinds = dict.fromkeys(("embeddings", "partial", "adapters", "models", "checkpoints", "snapshot_entries"), nothing)
    assert (code, json.loads(out)) == (0, {"dry_run": False, "kinds": kinds, "weights": [], "freed_bytes": 0})
    assert run(capsys, "gc", "--dry-run", "--workspace", str(tmp_path / "empty"))[0] == 2
    assert not (tmp_path / "empty").exists()


def test_db_upgrade_makes_a_database_and_then_has_nothing_to_do(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--json", "--workspace", str(settings.workspace)]
    first = json.loads(run(capsys, "db", "upgrade", *where)[1])
    again = json.loads(run(capsys, "db", "upgrade", *where)[1])
    assert first["from"] is None
    assert again == {"from": first["to"], "to": first["to"]}


def test_predict_writes_the_mask_that_it_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = write_pictures(tmp_path, 1) / "1.png"
    words = ["predict", "--model", "toy-color", "--image", str(picture), "--click", "60,48,+", "--json"]
    code, out, err = run(capsys, *words, "--out", str(tmp_path / "mask.png"))
    assert (code, err) == (0, "")
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (96, 128)
    assert mask[48, 60] == 255
    assert json.loads(out)["area"] == int((mask == 255).sum()) > 0


@pytest.mark.parametrize("option", ["--checkpoint", "--adapter"])
def test_weights_without_a_name_are_not_those_that_ship(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = next(write_pictures(tmp_path, 1).iterdir()), tmp_path / "m.png"
    words = ("predict", "--image", str(image), "--click", "1,1,+", "--out", str(out))
    code, _, err = run(capsys, *words, option, "")
    assert code == 2 and "does not exist" in err and not out.exists()


def test_a_mask_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.png").mkdir()
    code, _, err = run(capsys, "predict", "--image", __file__, "--click", "1,1,+", "--out", str(tmp_path / "m.png"))
    assert code == 2 and "is a folder" in err


def test_a_click_outside_the_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = write_pictures(tmp_path, 1) / "1.png"
    words = ["predict", "--model", "toy-color", "--image", str(picture), "--click", "500,48,+"]
    code, _, err = run(capsys, *words, "--out", str(tmp_path / "mask.png"))
    assert code == 2
    assert "500" in err
    assert not (tmp_path / "mask.png").exists()


def test_foreign_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = write_pictures(tmp_path, 1) / "1.png"
    foreign = tmp_path / "official.pth"
    foreign.write_bytes(b"\x80\x04pickle")
    words = ["--image", str(picture), "--click", "5,5,+", "--out", str(tmp_path / "m.png")]
    code, _, err = run(capsys, "predict", "--model", "toy-color", "--checkpoint", str(foreign), *words)
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run(capsys, "model", "convert", "--from", str(foreign), "--to", str(tmp_path / "m.safetensors"))
    assert code == 2
    assert "safetensors" in err


def test_evaluate_prints_and_writes_the_report_of_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_pictures(tmp_path, 2)
    words = ["--model", "toy-color", "--data", str(tmp_path / "truth.json"), "--images", str(images)]
    out_file = tmp_path / "report.json"
    code, out, _ = run(
        capsys, "evaluate", *words, "--max-clicks", "3", "--limit", "2", "--json", "--out", str(out_file)
    )
    assert code == 0
    report = json.loads(out)
    assert report == json.loads(out_file.read_text())
    assert {
        "model",
        "checkpoint_sha256",
        "data",
        "samples",
        "noc",
        "nof",
        "miou_at",
        "biou_at",
        "strata",
    } <= report.keys()
    assert {"spc_ms", "protocol"} <= report.keys()
    assert report["samples"] == 2
    assert set(report["noc"]) == {"85", "90"}
    assert set(report["miou_at"]) == {"1", "2", "3"}
    assert report["protocol"]["flip"] is True and report["protocol"]["threshold"] == 0.49
    text = run(capsys, "evaluate", *words, "--max-clicks", "2", "--limit", "1", "--no-flip")[1]
    assert "NoC@90" in text
    sorted(images.iterdir())[-1].unlink()
    code, _, err = run(capsys, "evaluate", *words, "--max-clicks", "1")
    assert code == 2 and "are not there" in err and "evaluate 1" not in err


def test_a_size_that_only_some_models_take_is_for_the_model_to_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_pictures(tmp_path, 1)
    words = ("evaluate", "--data", str(tmp_path / "truth.json"), "--images", str(images), "--max-clicks", "1")
    code, _, err = run(capsys, *words, "--model", "toy-color", "--target-size", "600")
    assert code == 2 and "--target-size 600 is not a multiple of 32, as toy-color needs it." in err
    weights = tmp_path / "ritm.safetensors"
    save_checkpoint(create_model("ritm-hrnet18s"), weights)
    ritm = ("--model", "ritm-hrnet18s", "--checkpoint", str(weights), "--limit", "1", "--no-flip")
    code, out, err = run(capsys, *words, *ritm, "--target-size", "600", "--json")
    assert code == 0 and json.loads(out)["protocol"]["target_size"] == [600, 600], err


def test_a_training_does_not_replace_the_state_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state.pt").write_bytes(b"hours of work")
    (tmp_path / "other.pt").write_bytes(b"of another folder")
    for more in ([], ["--resume", str(tmp_path / "other.pt")]):
        code, _, err = run(capsys, "train", "cpu-small", "--steps", "1", "--out", str(tmp_path), *more)
        assert code == 2 and f"--resume {tmp_path / 'state.pt'}" in err
    assert (tmp_path / "state.pt").read_bytes() == b"hours of work"
    code, _, err = run(capsys, "train", "cpu-small", "--out", str(tmp_path), "--resume", str(tmp_path / "state.pt"))
    assert "no readable training state" in err


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        ("cpu-small", "--epochs 3 --batch-size 2 --devices 1", "--epochs, --batch-size, --devices"),
        ("simpleclick-xtiny-sbd", "--steps 3 --seed 4", "--steps, --seed"),
    ],
)
def test_options_of_the_other_kind_of_training_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, given: str, told: str
) -> None:
    code, _, err = run(capsys, "train", config, *given.split(), "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert code == 2 and f"{config} does not take {told}." in err and not (tmp_path / "run").exists()


def test_a_training_on_several_devices_is_refused_before_they_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "simpleclick-xtiny-sbd", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--devices")
    code, _, err = run(capsys, *words, "3", "--batch-size", "4")
    assert code == 2 and "A batch of 4 cannot be shared out over 3 devices." in err
    code, _, err = run(capsys, *words, "2")
    assert code == 2 and "is no SBD folder" in err and not (tmp_path / "run").exists()


def test_model_list_tells_where_each_model_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads(run(capsys, "model", "list", "--json")[1])
    assert {"id": "toy-color", "cut": "image"}.items() <= next(r for r in records if r["id"] == "toy-color").items()


@pytest.mark.parametrize("module", ["flows.commands", "pydantic"])
def test_interrupted_in_the_middle_of_an_import_it_says_one_line(module: str, tmp_path: Path) -> None:
    code = f"""
import sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from flows.cli import main
sys.exit(main(["campaign", "create", "c", "--images", "."]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "clickloop: interrupted\n")


def test_terminated_it_says_one_line_after_it_has_tidied_up() -> None:
    code = """
import os, signal
from flows import cli
def work(argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("tidied up")
cli._run = work
cli.run()
"""
    done = subprocess.run([sys.executable, "-c", code], env=HERE, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "tidied up\n", "clickloop: terminated\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_nothing(closed: str, tmp_path: Path) -> None:
    """Files that a command opens must not become its standard streams."""
    words = f"{sys.executable} -m flows.cli token create ann --workspace {tmp_path} {closed}"
    assert subprocess.run(["sh", "-c", words], env=HERE, check=False).returncode == 0
    asked = f"{sys.executable} -m flows.cli purge annotator ann --workspace {tmp_path} {closed}"
    assert subprocess.run(["sh", "-c", asked], env=HERE, check=False).returncode == 2


def test_a_command_that_ran_a_flow_ends_with_its_work_and_flushes_what_it_said() -> None:
    code = """
import atexit, sys, time
import prefect
atexit.register(time.sleep, 60)
from flows import cli
cli.main = lambda: print("done", file=sys.stdout) or 3
cli.run()
"""
    done = subprocess.run([sys.executable, "-c", code], env=HERE, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


def test_a_clickadapter_is_not_trained_beside_a_host_that_learned_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "clickadapter-simpleclick-base-448-sbd", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    code, _, err = run(capsys, *words)
    assert code == 2 and "give its weights by --resume" in err
    assert not (tmp_path / "run").exists()
