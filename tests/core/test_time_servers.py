"""Is a document's list of time servers what systemd-timesyncd reads?"""

from __future__ import annotations

import configparser

import msgspec
import pytest

from cpe_agent.core.time_servers import drop_in
from cpe_agent.model.document import DocumentError, Management
from cpe_agent.model.document_check import check
from tests.core.documents import branch


def test_that_the_list_takes_the_place_of_what_was_listed_before() -> None:
    text = drop_in(("10.10.0.5", "2001:db8::5", "ntp.example"))
    assert text.splitlines()[1:] == ["[Time]", "NTP=", "NTP=10.10.0.5 2001:db8::5 ntp.example"]
    parser = configparser.ConfigParser(strict=False)
    parser.read_string(text)
    assert parser["Time"]["NTP"] == "10.10.0.5 2001:db8::5 ntp.example"


def test_that_without_a_list_nothing_is_taken_away() -> None:
    assert all(line.startswith("#") for line in drop_in(()).splitlines())


@pytest.mark.parametrize("server", ["", "ntp example", "ntp.example\nFallbackNTP=evil", "$(id)", "a" * 300])
def test_that_what_would_be_more_than_a_word_is_refused(server: str) -> None:
    document = msgspec.structs.replace(branch(), management=Management(time_servers=("10.10.0.5", server)))
    with pytest.raises(DocumentError, match=r"management.time_servers\[1\]"):
        check(document)
