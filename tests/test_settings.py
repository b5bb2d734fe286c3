"""Settings: the environment before the file, and an error in words for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterline.errors import UsageError
from adapterline.settings import Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_environment_counts_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapterline.toml").write_text('records = "s3://records/of-the-file"\nretries = 7\n')
    assert (Settings().records, Settings().retries) == ("s3://records/of-the-file", 7)
    monkeypatch.setenv("ADAPTERLINE_RETRIES", "2")
    assert (Settings().records, Settings().retries) == ("s3://records/of-the-file", 2)


@pytest.mark.parametrize(("value", "word"), [("many", "valid integer"), ("-1", "greater than or equal to 0")])
def test_a_wrong_value_is_a_usage_error_that_names_it(monkeypatch: pytest.MonkeyPatch, value: str, word: str) -> None:
    monkeypatch.setenv("ADAPTERLINE_RETRIES", value)
    with pytest.raises(UsageError, match=word) as caught:
        Settings()
    assert "ADAPTERLINE_RETRIES" in str(caught.value)


def test_an_unknown_setting_in_the_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "adapterline.toml").write_text("recrods = 1\n")
    with pytest.raises(UsageError, match="recrods"):
        Settings()


def test_a_broken_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "adapterline.toml").write_text("records = \n")
    with pytest.raises(UsageError, match=r"adapterline\.toml"):
        Settings()
