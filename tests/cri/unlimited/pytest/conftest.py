import sqlite3

import pytest


@pytest.fixture
def database(tmp_path):
    with sqlite3.connect(tmp_path / "data.sqlite") as connection:
        connection.execute("create table numbers (n integer primary key, square integer)")
        yield connection
