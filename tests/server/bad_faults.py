"""Bad inputs 128-143: what goes wrong around a request, each held by a test of its own."""

from __future__ import annotations

from tests.server.cases import Elsewhere, NotHere, Row

CONVERT = "tests/test_convert_faults.py::test_"
WEIGHTS = "tests/test_weights.py::test_"
HUB = "tests/test_hub.py::test_"
DISK = "tests/test_disk_cache.py::test_"

LIFE = "tests/server/test_lifecycle.py::test_"
ENDURANCE = "tests/server/test_endurance.py::test_"
HERE = "tests/server/test_faults.py::test_"

FAULTS: dict[int, Row] = {
    128: (
        Elsewhere(f"{HERE}memory_that_runs_out_fails_its_request_and_no_other"),
        Elsewhere(f"{HERE}a_fault_while_decoding_ends_the_stream_in_an_error"),
    ),
    129: (
        Elsewhere(f"{ENDURANCE}an_engine_that_breaks_is_seen_and_goes_on"),
        Elsewhere(f"{HERE}a_fault_while_decoding_ends_the_stream_in_an_error"),
    ),
    130: (Elsewhere(f"{ENDURANCE}a_step_that_hangs_is_seen_from_outside"),),
    131: (
        Elsewhere(f"{LIFE}a_signal_lets_a_stream_finish_and_ends_with_success"),
        Elsewhere(f"{LIFE}a_second_signal_ends_at_once"),
    ),
    132: (
        Elsewhere(f"{ENDURANCE}requests_that_come_while_the_model_was_let_go_load_it_once"),
        Elsewhere(f"{ENDURANCE}requests_that_come_while_the_model_goes_are_answered_all_the_same"),
    ),
    133: (Elsewhere(f"{ENDURANCE}a_server_that_loads_says_so_and_answers_once_it_has"),),
    134: (Elsewhere(f"{ENDURANCE}a_full_queue_is_said_with_a_time_to_come_back"),),
    135: (
        Elsewhere(f"{CONVERT}a_disk_that_becomes_full_is_told_and_resumed_when_there_is_room"),
        Elsewhere(f"{CONVERT}a_disk_without_room_is_told_before_anything_is_written"),
        Elsewhere(f"{DISK}a_full_disk_costs_one_warning_and_no_answer"),
    ),
    136: (
        Elsewhere(f"{WEIGHTS}a_file_cut_at_any_place_is_told_with_its_size"),
        Elsewhere(f"{WEIGHTS}a_lying_header_is_told"),
        Elsewhere(f"{WEIGHTS}a_missing_shard_is_named"),
        Elsewhere("tests/test_info.py::test_one_flipped_bit_is_found_and_both_digests_are_told"),
        Elsewhere(f"{CONVERT}numbers_that_are_none_are_named_and_pass_if_they_must"),
        Elsewhere("tests/kernels/test_sample.py::test_an_answer_from_nan_ends_in_an_error"),
    ),
    137: (
        Elsewhere("tests/test_config.py::test_a_wrong_value_is_told_with_what_was_expected"),
        Elsewhere("tests/test_config.py::test_a_file_that_is_no_configuration_is_one_line"),
        NotHere(
            "no code of a checkpoint is ever run: auto_map is not read, and there is no switch"
        ),
        Elsewhere(f"{WEIGHTS}pickled_weights_are_not_opened"),
    ),
    138: (
        Elsewhere(f"{HUB}cut_connection_is_resumed_where_it_broke"),
        Elsewhere(f"{HUB}interruption_ends_a_download_and_leaves_nothing_half_done"),
    ),
    139: (
        Elsewhere(f"{CONVERT}a_second_converter_is_told_and_the_first_one_finishes"),
        Elsewhere(f"{DISK}two_processes_at_once_read_nothing_wrong_and_keep_the_bound"),
    ),
    140: (
        Elsewhere(f"{CONVERT}a_read_only_place_is_one_line"),
        Elsewhere("tests/test_choice.py::test_read_only_folder_is_one_line"),
    ),
    141: (
        Elsewhere(f"{HUB}offline_uses_the_copy_and_says_when_there_is_none"),
        Elsewhere(f"{HUB}unreachable_hub_is_one_line"),
    ),
    142: (Elsewhere(f"{HERE}a_clock_that_jumps_disturbs_nobody"),),
    143: (Elsewhere(f"{ENDURANCE}many_requests_with_faults_and_leavers_leave_nothing_behind"),),
}
