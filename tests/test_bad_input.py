"""The list of bad input: where each item is tested, and the verbs' own answer to the commonest of them.

Each answer is one message (what, where, next), exit code 1, no traceback, nothing half-written.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import numpy as np
import pytest

from hagane.cli import main
from hagane.demo.members import demonstrations, write_format
from hagane.engine import save_checkpoint
from hagane.intake.can_write import encode_can
from hagane.intake.historian_write import write_historian
from hagane.intake.lerobot_rows import write_episodes
from hagane.seal import generate_key, sign_contract
from hagane.seal.keys import TrustStore, load_private, public_of
from hagane.terms import RunRecord
from hagane.worlds import make
from tests.catalog_fixture import ARM, episodes
from tests.intake_cases import CAR, LINE, noise
from tests.model_fixture import engine_of
from tests.test_intake_detect import member

WORLDS = Path(importlib.import_module("hagane.worlds").__file__ or "").parent
TESTED = {
    "a truncated log: CAN": "test_bad_input.test_a_bad_log_stops_the_verb_and_changes_nothing",
    "a truncated log: CSV": "test_bad_input.test_a_bad_log_stops_the_verb_and_changes_nothing",
    "a truncated log: MCAP": "test_bad_input.test_a_bad_log_stops_the_verb_and_changes_nothing",
    "a truncated log: LeRobot": "test_bad_input.test_a_bad_log_stops_the_verb_and_changes_nothing",
    "a DBC that lacks an id": "test_bad_input.test_a_bad_log_stops_the_verb_and_changes_nothing",
    "two units in a column": "test_bad_input.test_a_bad_log_stops_the_verb_and_changes_nothing",
    "an embodiment with an unknown key": "test_bad_input.test_an_embodiment_with_an_unknown_key",
    "an expired contract": "test_intake_detect.test_an_expired_contract_is_refused",
    "an unsigned contract": "test_bad_input.test_contracts_that_do_not_hold_stop_intake",
    "a contract for another country": "test_bad_input.test_contracts_that_do_not_hold_stop_intake",
    "a checkpoint with a flipped byte": "test_bad_input.test_a_checkpoint_with_a_flipped_byte",
    "a disk that fills: catalog": "test_catalog_crash.test_a_disk_without_room_is_one_message_and_nothing_is_lost",
    "a disk that fills: training": "test_train.test_a_full_disk_is_one_message_and_the_run_goes_on_later",
    "port in use": "test_drive.test_a_port_in_use_ends_the_serve_verb",
    "a client that sends nonsense": "test_serve.test_nonsense_gets_a_text_and_1011_and_others_go_on",
    # rights: what a contract, a site's record or a clock can be
    "an expired, unsigned, future or replayed contract": "test_permit.test_the_reason_is_in_words",
    "a contract that is no contract any more": "test_permit.test_no_form_of_damage_is_a_contract",
    "a contract changed at any byte": "test_seal_contracts.test_every_flipped_bit_is_refused",
    "a contract cut at any byte": "test_seal_site.test_a_contract_cut_at_any_byte_is_refused",
    "a forged contract": "test_seal_contracts.test_forged_under_the_owners_key_id",
    "a contract signed with the wrong key": "test_seal_contracts.test_signed_by_somebody_else",
    "a misspelt key, value, name or country in a contract": "test_seal_contracts"
    ".test_bad_terms_can_neither_be_signed_nor_loaded",
    "a member name with path parts or odd Unicode": "test_seal_contracts.test_odd_member_names_are_refused",
    "a contract replayed, a clock set back": "test_rights_cli.test_replay_and_a_clock_set_back_are_refused_and_logged",
    "other content than the contract names": "test_rights_cli"
    ".test_a_contract_is_pinned_to_the_content_that_the_site_has",
    "data that asks for a jail outside one": "test_rights_cli"
    ".test_a_contract_that_asks_for_a_jail_is_refused_outside_one",
    "a site's record cut, changed, forged or signed by another": "test_seal_site"
    ".test_a_bad_signature_of_a_site_is_an_error_and_never_none",
    "a site's memory that is damaged": "test_seal_site.test_a_damaged_memory_grants_nothing",
    # data: what foreign bytes can do
    "an empty file": "test_intake_detect.test_what_is_no_log",
    "a wrong extension": "test_intake_can_logs.test_the_content_decides_what_a_log_is",
    "a wrong extension: ROS": "test_intake_ros_bad.test_the_name_does_not_decide",
    "a Parquet called .csv, no footer, a gz bomb": "test_intake_historian_forms"
    ".test_wrong_extension_missing_footer_and_packed_zeros",
    "a truncated log: ROS bags": "test_intake_ros_bad.test_a_cut_bag_is_refused_or_gives_what_is_whole",
    "a truncated log: BLF and ASC": "test_intake_can_logs.test_a_log_cut_at_any_byte_is_refused_or_gives_whole_frames",
    "a truncated log: MDF": "test_intake_mdf.test_a_file_cut_at_any_byte_is_one_message",
    "a truncated log: Parquet, long CSV, gz": "test_intake_historian_forms"
    ".test_a_file_cut_anywhere_is_refused_or_gives_true_rows",
    "a truncated log: Tennessee Eastman": "test_intake_tep.test_a_file_cut_anywhere_is_refused_or_gives_true_rows",
    "a truncated log: HDF5": "test_intake_hdf5.test_truncated_files_are_refused",
    "a truncated or damaged log: RLDS": "test_intake_rlds.test_sets_that_are_wrong_get_one_message",
    "a zip bomb: ROS and MCAP": "test_intake_ros_bad.test_bombs_are_refused_before_they_are_inflated",
    "a zip bomb: BLF": "test_intake_can_logs.test_a_container_that_lies_is_refused_before_it_fills_memory",
    "a zip bomb: MDF": "test_intake_mdf.test_a_compressed_block_that_lies_is_refused_before_it_fills_memory",
    "a zip bomb and links: HDF5": "test_intake_hdf5.test_what_is_refused",
    "a bomb: XML": "test_intake_commonroad.test_what_is_refused",
    "an array that claims gigabytes": "test_intake_can_logs.test_an_array_that_claims_gigabytes_is_refused",
    "a link out of the folder": "test_intake_detect.test_links_out_of_a_folder_are_refused",
    "a bag whose metadata leads out of its folder": "test_intake_ros_bad.test_metadata_that_leads_astray",
    "links out of a LeRobot set, row and video counts": "test_lerobot_v21.test_damaged_sets_get_one_message",
    "mixed endianness: CAN": "test_intake_can_dbc.test_both_byte_orders_in_one_message_equal_cantools",
    "mixed endianness: CDR": "test_intake_ros_bad.test_mixed_byte_order_in_one_topic",
    "unsorted and repeated stamps: CAN": "test_intake_can_logs.test_unsorted_and_repeated_stamps_are_findings",
    "unsorted and repeated stamps: ROS": "test_intake_ros.test_unsorted_and_repeated_stamps_are_findings",
    "unsorted and repeated stamps: historian": "test_intake_historian_forms.test_newest_first_and_repeated_stamps",
    "topics that vanish mid-file": "test_intake_ros.test_a_topic_that_vanishes_is_a_finding",
    "a tag that vanishes mid-file": "test_intake_historian_forms.test_a_vanished_tag_is_said_and_not_filled",
    "a message type that nobody defines": "test_intake_ros.test_old_bags_take_definitions_from_a_folder",
    "a DBC with broken lines": "test_intake_can_dbc"
    ".test_a_lost_signal_is_refused_when_asked_for_and_a_finding_when_not",
    "a DBC in Shift-JIS": "test_intake_can_dbc.test_dbc_files_in_other_encodings",
    "a CSV in Shift-JIS": "test_intake_historian_text.test_encodings_are_found_and_said",
    "an encoding that cannot be found": "test_intake_historian_text.test_other_encodings_must_be_told",
    "an hour that summer time repeats or drops": "test_intake_historian_text.test_an_hour_that_never_was_is_refused",
    "an OPC UA server lost on the way": "test_intake_opcua.test_a_connection_lost_on_the_way_is_one_message",
    "a flipped byte in a tfrecord": "test_intake_rlds.test_every_flipped_byte_of_a_shard_is_found",
    "a picture of another size, or half a picture": "test_catalog_pictures.test_a_picture_of_another_size_is_refused",
    "a flipped byte in cache or video": "test_catalog_pictures.test_a_flipped_byte_names_file_and_episode",
    "a flipped byte in Parquet": "test_catalog.test_damage_in_a_parquet_file_is_told_by_episode",
    "one bad log among many": "test_catalog_workers.test_one_bad_log_in_a_pool_refuses_all_of_it",
    "a worker that dies": "test_catalog_workers.test_a_worker_that_dies_is_one_message",
    "any byte of a Parquet footer": "test_intake_historian_forms.test_any_byte_of_a_parquet_footer_is_one_message",
    "links in a circle, and pipes": "test_intake_detect.test_links_in_a_circle_and_pipes_are_one_message",
    "a change of data half written": "test_train_changes.test_a_change_that_was_half_written_is_not_taken_for_one",
    "a cache of another set": "test_catalog.test_a_cache_of_another_set_or_version_is_not_used",
    "a pool that broke": "test_catalog_workers.test_a_pool_that_broke_and_takes_nothing_more_is_one_message",
    "data that changed under a run": "test_train_changes.test_an_unrecorded_change_is_refused",
    "an export of a damaged set": "test_export.test_damage_is_named_and_nothing_is_left",
    "a disk that fills: export": "test_export.test_a_really_full_disk",
    "an export that the contract does not grant": "test_export.test_without_the_purpose_nothing_is_written",
    "an output folder that exists": "test_export.test_what_exists_is_not_touched",
    "bad input to the catalog's verbs": "test_catalog_cli.test_bad_input_is_one_message_and_writes_nothing",
    "a split of data that changed": "test_split.test_a_loader_is_told_sides_and_is_stopped_when_data_changed",
    "a log or set that cannot be examined": "test_doctor_cli.test_one_message_for_bad_input",
    "metadata that does not agree": "test_doctor_cli.test_metadata_that_does_not_agree",
    "words in the data on a page": "test_dataset_page.test_words_of_the_data_cannot_break_out",
    # scale: layouts, ranks, checkpoints, plans
    "an impossible layout": "test_layout.test_what_does_not_divide_is_named",
    "a layout for another number of processes": "test_layout.test_an_engine_refuses_the_wrong_number_of_processes",
    "mixed torch versions, another code hash": "test_launch"
    ".test_other_code_torch_seed_and_device_are_refused_by_every_rank",
    "a world size that changed": "test_launch.test_a_layout_that_cannot_be_fitted_is_refused_with_those_that_work",
    "ranks that count other ranks": "test_launch.test_a_rank_that_counts_other_ranks_refuses_itself",
    "--nproc against torchrun": "test_launch.test_other_ranks_than_torchrun_started_are_refused",
    "a rank that never comes": "test_launch.test_a_rank_that_never_comes_is_named_by_the_others",
    "half a rank's environment": "test_launch.test_a_seat_that_cannot_be_is_refused",
    "a rank that hangs": "test_watch.test_a_stopped_rank_is_named_with_the_collective_and_a_slow_run_is_left_alone",
    "a killed rank": "test_faults.test_a_killed_rank_ends_all_with_one_message_and_the_run_goes_on_on_other_ranks",
    "a lost file of a checkpoint": "test_faults.test_a_damaged_or_lost_checkpoint_is_passed_over",
    "lost checkpoints": "test_faults.test_when_all_checkpoints_are_gone_nothing_is_trained_over_the_run",
    "a disk that fills: ranks": "test_faults.test_a_disk_that_is_really_full_ends_all_ranks_with_one_message",
    "a cluster script without its settings": "test_slurm.test_a_missing_setting_is_named",
    "a checkpoint of another size": "test_checkpoint.test_a_checkpoint_of_another_size_or_model_is_refused",
    "a missing shard": "test_checkpoint.test_a_missing_shard_is_named",
    "a lost rank's files, one rank's full disk": "test_checkpoint_ranks.test_what_one_rank_meets_all_ranks_say",
    "a rank killed while it saves": "test_checkpoint_ranks"
    ".test_a_rank_killed_while_it_saves_leaves_the_earlier_checkpoint",
    "a damaged checkpoint in export": "test_checkpoint_export.test_damage_stops_an_export_and_nothing_is_left",
    "an export changed by another tool": "test_checkpoint_export.test_it_comes_back_after_another_tool_wrote_it",
    "batches of numbers that are not finite": "test_spike_train.test_data_without_a_good_batch_are_given_up",
    "skips.jsonl lost": "test_spike_train.test_killed_and_resumed_it_leaves_out_the_same",
    "skips.jsonl edited": "test_spike.test_an_edited_or_lost_file_is_refused",
    "an unknown optimiser": "test_optimiser.test_an_unknown_optimiser_is_refused",
    "spike limits without sense": "test_spike.test_limits_that_make_no_sense_are_refused",
    "a token budget without sources, or beyond them": "test_plan_run.test_bad_input_is_one_message",
    "held data that the catalog does not have so": "test_plan_tokens.test_held_data_that_the_catalog_does_not_have_so",
    "runs too few or too alike for a scaling law": "test_plan_scaling.test_runs_that_cannot_carry_a_law_are_refused",
    "a loss that is NaN": "test_plan_scaling.test_a_loss_that_is_none_is_refused",
    "a measurement that is torn, empty or no runs": "test_plan_scaling.test_a_file_that_is_none",
    "an unknown gpu": "test_plan_run.test_an_unknown_gpu_names_the_nearest",
    "an impossible number of GPUs": "test_plan_run.test_an_impossible_number_of_gpus",
    "a layout that does not fit the memory": "test_plan_run.test_a_layout_that_does_not_fit_names_the_nearest_that_do",
    "a budget in yen that does not cover": "test_plan_run.test_a_budget_that_does_not_cover",
    "assumptions out of range": "test_plan_run.test_bad_assumptions",
    "a programme that does not add up": "test_plan_programme.test_what_does_not_add_up_is_refused",
    "a scenario with wrong keys or names": "test_plan_programme.test_bad_scenarios_are_one_message",
}
NEEDS = {
    "test_intake_can": "cantools",
    "test_intake_mcap": "mcap",
    "test_intake_hdf5": "h5py",
    "test_intake_opcua": "asyncua",
    "test_intake_mdf": "asammdf",
    "test_intake_ros": "rosbags",
}
"""Modules of tests by the optional library that they need."""


@pytest.mark.parametrize("item", TESTED)
def test_every_item_of_the_list_is_tested(item: str) -> None:
    module, _, function = TESTED[item].partition(".")
    for part, library in NEEDS.items():
        if module.startswith(part):
            pytest.importorskip(library)
    assert callable(getattr(importlib.import_module(f"tests.{module}"), function))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site in Japan, a member with a key, and its historian log."""
    home = tmp_path_factory.mktemp("site")
    (home / "site.toml").write_text('name = "consortium-lab"\ncountry = "JP"\noperator = "consortium"\n')
    (home / "trust").mkdir()
    generate_key(home / "member-steel.pem")
    TrustStore(home / "trust").add("member-steel", public_of(load_private(home / "member-steel.pem")))
    world = make("mill")
    write_format(world.embodiment, demonstrations(world, 2), home / "logs")
    return home


def contract(site: Path, name: str, *, country: str = "JP", sign: bool = True) -> Path:
    path = site / f"{name}.toml"
    path.write_text(
        f'owner = "member-steel"\ndatasets = ["mill-demo"]\nresidency = ["{country}"]\nsites = ["consortium-lab"]\n'
        'purposes = ["anchor"]\nuntil = 2099-12-31\nissued = 2026-01-01\nserial = 1\nprotection = "process"\n'
    )
    if sign:
        sign_contract(path, load_private(site / "member-steel.pem"))
    return path


def intake(site: Path, terms: Path, log: Path | None = None, embodiment: Path = WORLDS / "mill.toml") -> int:
    where = ["--embodiment", str(embodiment), "--contract", str(terms), "--name", "mill-demo", "--home", str(site)]
    return main(["intake", str(log or site / "logs" / "historian.csv"), *where])


def one_message(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.startswith("hagane ") and said.count("\n  next: ") == 1, said
    for word in words:
        assert word in said, said


def stored(site: Path) -> list[str]:
    return [p.name for p in (site / "catalog" / "sets").glob("*")]


@pytest.mark.parametrize(
    ("name", "country", "sign", "words"),
    [("abroad", "DE", True, ("may not be read in 'JP'",)), ("unsigned", "JP", False, ("sign",))],
)
def test_contracts_that_do_not_hold_stop_intake(
    site: Path, capsys: pytest.CaptureFixture[str], name: str, country: str, sign: bool, words: tuple[str, ...]
) -> None:
    assert intake(site, contract(site, name, country=country, sign=sign)) == 1
    one_message(capsys, *words)
    assert stored(site) == []


def test_an_embodiment_with_an_unknown_key(site: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = tmp_path / "mill.toml"
    text = (WORLDS / "mill.toml").read_text()
    wrong.write_text(text.replace("rate_hz =", "rate_khz =", 1))
    line = 1 + text[: text.index("rate_hz =")].count("\n")
    assert intake(site, contract(site, "good"), embodiment=wrong) == 1
    one_message(capsys, f"mill.toml:{line}", "unknown key `rate_khz`", "did you mean `rate_hz`?")
    assert stored(site) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cut_can(folder: Path) -> Path:
    log, _ = encode_can([noise(CAR, k, 30) for k in range(2)], CAR, folder)
    cut(log)
    return log


def no_such_id(folder: Path) -> Path:
    log, _ = encode_can([noise(CAR, 0, 30)], CAR, folder)
    dbc = log.with_suffix(".dbc")
    dbc.write_text("\n\n".join(b for b in dbc.read_text().split("\n\n") if " EGO:" not in b) + "\n")
    return log


def cut_csv(folder: Path) -> Path:
    log = write_historian([noise(LINE, 0, 30)], LINE, folder / "line.csv")
    text = log.read_text()
    log.write_text(text[: text.rindex(",") - 3])  # in a row: its last columns are gone
    return log


def two_units(folder: Path) -> Path:
    log = write_historian([noise(LINE, 0, 30)], LINE, folder / "line.csv")
    rows = list(csv.reader(log.read_text().splitlines()))
    speed = next(i for i, head in enumerate(rows[0]) if "LINE_SPEED" in head)
    rows[0][speed] = "LINE_SPEED"
    for k, row in enumerate(rows[1:]):
        row[speed] += " ft/min" if k == 9 else " m/min"
    log.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return log


def cut_mcap(folder: Path) -> Path:
    from hagane.intake.recorder import McapRecorder

    path = folder / "a.mcap"
    with McapRecorder(path, CAR, "go home", "c0ffee", wait=True) as r:
        for name, stream in noise(CAR, 0, 60).streams.items():
            if name != "agents":
                for time_ns, value in zip(stream.times_ns.tolist(), stream.values, strict=True):
                    r.write(name, time_ns, value)
    cut(path)
    return path


def cut_lerobot(folder: Path) -> Path:
    root = write_episodes(folder / "set", ARM, episodes(ARM, 2))
    cut(root / "data" / "chunk-000" / "file-000.parquet")
    return root


BAD_LOGS = {
    "candump": (CAR, cut_can, ("drives", "truncated", "--keep-whole")),
    "DBC": (CAR, no_such_id, ("no message 'EGO'", ".dbc")),
    "CSV": (LINE, cut_csv, ("line.csv", "truncated", "--keep-whole")),
    "units": (LINE, two_units, ("line.csv:11", "'LINE_SPEED'", "two units in one column")),
    "MCAP": (CAR, cut_mcap, ("a.mcap", "truncated file", "--keep-whole")),
    "LeRobot": (ARM, cut_lerobot, ("file-000.parquet", "truncated")),
}


@pytest.mark.parametrize("kind", BAD_LOGS)
def test_a_bad_log_stops_the_verb_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    machine, spoil, words = BAD_LOGS[kind]
    for module in {"candump": ("cantools",), "DBC": ("cantools",), "MCAP": ("mcap",)}.get(kind, ()):
        pytest.importorskip(module)
    terms, file = member(tmp_path, machine, "it")
    (tmp_path / "logs").mkdir()
    log = spoil(tmp_path / "logs")
    logs = {p: p.read_bytes() for p in log.parent.rglob("*") if p.is_file()}
    capsys.readouterr()
    where = ["--embodiment", file, "--contract", terms, "--name", "it", "--home", str(tmp_path)]
    assert main(["intake", str(log), *where]) == 1
    one_message(capsys, *words)
    left = [p for d in ("sets", "staging") for p in (tmp_path / "catalog" / d).rglob("*") if p.is_file()]
    assert left == [], "half-written"
    assert {p: p.read_bytes() for p in log.parent.rglob("*") if p.is_file()} == logs, "the log was touched"


def test_a_log_that_is_cut_or_empty_changes_nothing(
    site: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = (site / "logs" / "historian.csv").read_bytes()
    for name, cut in (("empty.csv", b""), ("header.csv", data[:30])):
        (tmp_path / name).write_bytes(cut)
        assert intake(site, contract(site, "good"), tmp_path / name) == 1
        one_message(capsys, name)
    assert stored(site) == []


def test_a_checkpoint_with_a_flipped_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord("r", "c", "d", {}, {}, {}, 0, 0)
    save_checkpoint(tmp_path, engine_of(), record, {})
    path = next((tmp_path / "step-000000").glob("served/member-cars*"))
    data = bytearray(path.read_bytes())
    data[int(np.random.default_rng(0).integers(len(data)))] ^= 4
    path.write_bytes(bytes(data))
    for verb in (["serve", str(path.parents[1])], ["evaluate", str(path.parents[1]), "--world", "mill"]):
        assert main(verb) == 1
        one_message(capsys, path.name, "sha256")
