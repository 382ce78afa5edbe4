"""Bad inputs 113-127, 144 and 145: the wire, and what errors and logs may hold."""

from __future__ import annotations

import httpx2

from tests.server.cases import CHAT, Case, Elsewhere, NotHere, Row, ask, picture, posted

GUARD = "tests/server/test_guard.py::"
WIRE = "tests/server/test_connections.py::"
ROUTES = "tests/server/test_routes.py::"
FOREIGN = Elsewhere(f"{GUARD}test_foreign_pages_are_refused_and_not_only_left_without_an_answer")


def asked(name: str, *status: int, says: str = "", method: str = "POST", **headers: str) -> Case:
    """A good question with a head that is not."""
    sent = {"content-type": "application/json"}
    sent |= {key.replace("_", "-"): value for key, value in headers.items()}

    def send(client: httpx2.Client) -> httpx2.Response:
        return client.request(method, CHAT, json=ask(), headers=sent)

    return Case(name, send, status, says)


def many_fields(client: httpx2.Client) -> httpx2.Response:
    return client.post(CHAT, json=ask(), headers={f"x-{i}": "a" for i in range(1000)})


def no_body(client: httpx2.Client) -> httpx2.Response:
    return client.post(CHAT)


HTTP: dict[int, Row] = {
    113: (
        posted("a template", ask(chat_template="{{ 7 * 7 }}"), says="chat_template"),
        posted("fields for one", ask(chat_template_kwargs={"a": 1}), says="chat_template_kwargs"),
    ),
    114: (
        Case("no body", no_body, (400,)),
        Elsewhere(f"{WIRE}test_what_is_not_http_is_a_400_and_closed"),
        Elsewhere(f"{WIRE}test_a_body_over_the_budget_is_refused_before_it_comes"),
        Elsewhere(f"{WIRE}test_a_length_that_lies_small_leaves_a_next_request_that_is_none"),
        Elsewhere(f"{WIRE}test_both_a_length_and_chunks_smuggle_nothing"),
    ),
    115: (
        Elsewhere(f"{WIRE}test_chunks_over_the_budget_are_refused_and_heard"),
        Elsewhere(f"{WIRE}test_chunks_without_end_are_cut_off"),
    ),
    116: (
        Elsewhere(f"{WIRE}test_a_head_that_drips_gets_no_more_time"),
        Elsewhere(f"{WIRE}test_a_body_that_drips_gets_no_more_time"),
        Elsewhere(f"{WIRE}test_more_connections_than_allowed_are_told_so_and_room_comes_back"),
    ),
    117: (Elsewhere(f"{WIRE}test_a_reader_that_stops_reading_is_let_go"),),
    118: (
        Elsewhere(f"{WIRE}test_one_that_hangs_up_is_noticed"),
        Elsewhere(f"{GUARD}test_a_client_that_goes_away_in_its_body_reaches_nothing"),
    ),
    119: (Elsewhere(f"{WIRE}test_what_follows_a_refused_request_is_never_parsed"),),
    120: (
        asked("a header of 64 KB", 431, says="32768 bytes", x="a" * 65536),
        Case("1000 headers", many_fields, (431,), "at most 128 header fields"),
        Elsewhere(f"{WIRE}test_heads_that_are_too_large_are_refused_in_pieces_too"),
    ),
    121: (
        asked("another host", 421, says="--allowed-host", host="evil.example"),
        asked(
            "a host that begins like ours",
            421,
            says="--allowed-host",
            host="localhost.evil.example",
        ),
        Elsewhere(f"{GUARD}test_other_names_are_refused"),
    ),
    122: (
        asked("an evil origin", 403, says="--allowed-origin", origin="https://evil.example"),
        asked("the null origin", 403, says="--allowed-origin", origin="null"),
        asked(
            "localhost.evil", 403, says="--allowed-origin", origin="http://localhost.evil.example"
        ),
        asked("plain text", 415, says="application/json", content_type="text/plain"),
        FOREIGN,
    ),
    123: (
        asked("OPTIONS without Origin", 405, method="OPTIONS"),
        Elsewhere(f"{GUARD}test_desktop_apps_and_pages_of_this_machine_may_call"),
    ),
    124: (
        Elsewhere(f"{ROUTES}test_no_route_answers_without_a_key_or_with_a_wrong_one"),
        Elsewhere(f"{GUARD}test_no_route_answers_without_a_key"),
    ),
    125: (
        asked("an unknown method", 405, says="not served", method="BREW"),
        Elsewhere(f"{GUARD}test_only_known_methods_get_in"),
    ),
    126: (
        asked("an id of a megabyte is a large head", 400, 431, x_request_id="a" * 2**20),
        Elsewhere(f"{GUARD}test_a_sane_request_id_comes_back_and_another_is_replaced"),
    ),
    127: (
        posted("a path as the model", ask(model="../../etc/passwd"), 200),
        posted("a repository as the model", ask(model="https://hub.example/owner/model"), 200),
        Elsewhere(f"{ROUTES}test_no_model_name_leads_to_a_file_or_a_download"),
    ),
    144: (
        NotHere("holds for all errors: each case of this table is searched for such text"),
        posted("a damaged picture", ask([picture("data:image/png;base64,iVBORw0KGgo=")]), 400),
        Elsewhere(f"{GUARD}test_a_fault_behind_the_door_is_one_trace_and_a_500_without_it"),
    ),
    145: (
        Elsewhere(f"{WIRE}test_no_secret_reaches_the_log_or_an_answer"),
        Elsewhere(f"{GUARD}test_the_access_log_has_no_query_no_key_and_no_line_breaks"),
    ),
}
