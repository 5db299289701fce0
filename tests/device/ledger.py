#!/usr/bin/env python3
"""Ledgers: clients of an application that note what they were promised, and a judge of what a past of the volume has of it.

    ledger.py write KIND PLACE JOURNAL --clients N --until FILE
    ledger.py judge KIND PLACE JOURNAL --marked TIME --heard NANOSECONDS
    ledger.py hear COMMAND...

KIND and PLACE: `postgres`, what psql connects to; `sqlite`, a directory for two databases; `files`, a directory.

Each client commits transactions 1, 2, 3..., one after the other, and notes in JOURNAL, which must not lie on the volume, when it began each
and when that was acknowledged. A transaction has several parts: rows of the ledger and the client's counter, in the other database with
SQLite; a file that is written, gets its name, and takes the place of an older one, and the counter. All contents follow from client and number.

Of a point that was marked at TIME, and of which somebody heard at NANOSECONDS, the judge demands of each client that

- every transaction acknowledged before TIME is there,
- none that was begun after NANOSECONDS is there,
- those that are there are the first ones, without a gap, each whole; files, which know no transactions, may stop between two steps.

It prints how many transactions are there, and how many of them could have been missing.

`hear` runs a command and prints its lines, each with the time at which it came.
"""

import argparse
import concurrent.futures
import datetime
import hashlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time

ROWS = 4
FILES_KEPT = 20
LARGEST_FILE = 200_000


class Broken(Exception):
    """A promise that was not kept."""


# ---- Databases ------------------------------------------------------------------------------------------------------------------

TABLES = (
    "CREATE TABLE {}ledger (client integer, number integer, line integer, note text, PRIMARY KEY (client, number, line))",
    "CREATE TABLE {}counters (client integer PRIMARY KEY, transactions integer)",
)
ALL_ROWS = "SELECT client, number, line, note FROM ledger"
ALL_COUNTERS = "SELECT client, transactions FROM counters"


def note(client, number, line):
    return hashlib.sha256(f"{client} {number} {line}".encode()).hexdigest() * 4


def statements(client, number, begin="BEGIN"):
    """A transaction, for either database."""
    yield begin
    for line in range(ROWS):
        yield f"INSERT INTO ledger VALUES ({client}, {number}, {line}, '{note(client, number, line)}')"
    yield f"UPDATE counters SET transactions = {number} WHERE client = {client}"
    yield "COMMIT"


def whole_transactions(rows, counters):
    """How many transactions of each client there are."""
    found = {client: {} for client in counters}
    for client, number, line, text in rows:
        found[client].setdefault(number, {})[line] = text
    for client, transactions in counters.items():
        for number in range(1, max([transactions, *found[client]]) + 1):
            lines = {line: note(client, number, line) for line in range(ROWS)}
            if number > transactions or found[client].get(number) != lines:
                there = len(found[client].get(number, ()))
                raise Broken(
                    f"transaction {number} of client {client} is not whole: {there} of {ROWS} rows, and the counter is at {transactions}"
                )
    return {client: (transactions, transactions) for client, transactions in counters.items()}


class Postgres:
    """One psql a client; each statement is a message of its own."""

    def __init__(self, place):
        self.command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", place]

    def ask(self, question):
        answer = subprocess.run([*self.command, "-c", question], check=True, capture_output=True, text=True)
        return [line.split("|") for line in answer.stdout.splitlines()]

    def prepare(self, clients):
        for table in TABLES:
            self.ask(table.format(""))
        self.ask(f"INSERT INTO counters SELECT client, 0 FROM generate_series(1, {clients}) AS client")

    def session(self, client):
        psql = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def commit(number):
            psql.stdin.write(";\n".join(statements(client, number)) + f";\n\\echo {number}\n")
            psql.stdin.flush()
            if psql.stdout.readline().strip() != str(number):
                raise Broken(f"client {client}: psql has failed")

        return commit

    def found(self):
        rows = ((int(client), int(number), int(line), text) for client, number, line, text in self.ask(ALL_ROWS))
        return whole_transactions(rows, {int(client): int(transactions) for client, transactions in self.ask(ALL_COUNTERS)})


class Sqlite:
    """The rows in a database with a write-ahead log, whose commits are not durable by themselves; the counters in one with a
    journal. Only the agent, who holds both locks, makes their transactions one for a crash."""

    def __init__(self, place):
        self.place = place

    def connect(self):
        connection = sqlite3.connect(f"{self.place}/ledger.db", timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("ATTACH ? AS other", (f"{self.place}/other.db",))
        connection.execute("PRAGMA main.synchronous = NORMAL")
        connection.execute("PRAGMA other.synchronous = FULL")
        return connection

    def prepare(self, clients):
        connection = self.connect()
        connection.execute("PRAGMA main.journal_mode = WAL")
        connection.execute("PRAGMA other.journal_mode = DELETE")
        for table, database in zip(TABLES, ("main.", "other.")):
            connection.execute(table.format(database))
        for client in range(1, clients + 1):
            connection.execute("INSERT INTO counters VALUES (?, 0)", (client,))

    def session(self, client):
        connection = self.connect()

        def commit(number):
            # SQLite's lock has no queue: clients that never pause can keep the agent, and each other, from it for long.
            time.sleep(random.uniform(0.01, 0.05))
            # A lock that is only asked for in the middle of a transaction may fail at once.
            for statement in statements(client, number, "BEGIN IMMEDIATE"):
                connection.execute(statement)

        return commit

    def found(self):
        connection = self.connect()
        for database in ("main", "other"):
            said = connection.execute(f"PRAGMA {database}.integrity_check").fetchall()
            if said != [("ok",)]:
                raise Broken(f"integrity_check of {database}: {said}")
        return whole_transactions(connection.execute(ALL_ROWS), dict(connection.execute(ALL_COUNTERS)))


# ---- Files ----------------------------------------------------------------------------------------------------------------------


def contents(client, number):
    chance = random.Random(f"{client} {number}")
    return chance.randbytes(chance.randrange(LARGEST_FILE))


class Files:
    """A directory a client: its newest files, and a counter that is overwritten in place."""

    def __init__(self, place):
        self.place = place

    def prepare(self, clients):
        for client in range(1, clients + 1):
            os.makedirs(f"{self.place}/{client}")

    def session(self, client):
        directory = f"{self.place}/{client}"
        counter = os.open(f"{directory}/counter", os.O_WRONLY | os.O_CREAT, 0o600)

        def commit(number):
            with open(f"{directory}/new", "wb") as file:
                file.write(contents(client, number))
                if number % 2 == 0:
                    os.fsync(file.fileno())
            os.rename(f"{directory}/new", f"{directory}/{number}")
            if number > FILES_KEPT:
                os.unlink(f"{directory}/{number - FILES_KEPT}")
            os.pwrite(counter, b"%020d" % number, 0)

        return commit

    def found(self):
        return {int(client): self.found_of(int(client)) for client in os.listdir(self.place) if client.isdecimal()}

    def found_of(self, client):
        directory = f"{self.place}/{client}"
        numbers = sorted(int(name) for name in os.listdir(directory) if name.isdecimal())
        with open(f"{directory}/counter", "rb") as file:
            counter = int(file.read() or b"0")
        newest = max(numbers, default=0)
        # After the rename, after the removal, after the counter: nothing else lies between two transactions.
        steps = ((newest - 1, FILES_KEPT + 1), (newest - 1, FILES_KEPT), (newest, FILES_KEPT))
        states = [(complete, list(range(max(newest - kept, 0) + 1, newest + 1))) for complete, kept in steps]
        if (counter, numbers) not in states:
            raise Broken(f"the files of client {client} are no moment of it: counter {counter}, files {numbers}")
        for number in numbers:
            with open(f"{directory}/{number}", "rb") as file:
                if file.read() != contents(client, number):
                    raise Broken(f"file {number} of client {client} is not whole")
        return counter, newest


KINDS = {"postgres": Postgres, "sqlite": Sqlite, "files": Files}


# ---- The journal ----------------------------------------------------------------------------------------------------------------


def run_client(application, client, journal, is_over):
    commit = application.session(client)
    lines = os.open(f"{journal}/{client}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    number = 0
    while not is_over():
        number += 1
        os.write(lines, b"begun %d %d\n" % (number, time.time_ns()))
        commit(number)
        os.write(lines, b"acknowledged %d %d\n" % (number, time.time_ns()))


def write(arguments):
    application = KINDS[arguments.kind](arguments.place)
    application.prepare(arguments.clients)
    os.makedirs(arguments.journal)
    failed = threading.Event()

    def until_the_end(client):
        try:
            run_client(application, client, arguments.journal, lambda: failed.is_set() or os.path.exists(arguments.until))
        except BaseException:
            failed.set()
            raise

    with concurrent.futures.ThreadPoolExecutor(arguments.clients) as pool:
        list(pool.map(until_the_end, range(1, arguments.clients + 1)))


def newest(journal, client, word, until):
    """The last transaction of which the journal has this, up to a time."""
    with open(f"{journal}/{client}") as file:
        lines = [line.split() for line in file if line.endswith("\n")]
    return max((int(number) for said, number, at in lines if said == word and int(at) <= until), default=0)


def nanoseconds(text):
    """Of an RFC 3339 time in UTC, with as many digits of the second as it has."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    whole = datetime.datetime.fromisoformat(seconds).replace(tzinfo=datetime.timezone.utc)
    return int(whole.timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def judge(arguments):
    found = KINDS[arguments.kind](arguments.place).found()
    clients = sorted(int(name) for name in os.listdir(arguments.journal))
    if sorted(found) != clients:
        raise Broken(f"clients {sorted(found)} are there, {clients} wrote")
    total, open_ones = 0, 0
    for client, (complete, last) in sorted(found.items()):
        acknowledged = newest(arguments.journal, client, "acknowledged", nanoseconds(arguments.marked) - 1)
        begun = newest(arguments.journal, client, "begun", arguments.heard)
        if complete < acknowledged:
            raise Broken(f"transaction {acknowledged} of client {client} was acknowledged before the mark; only {complete} are there")
        if last > begun:
            raise Broken(f"transaction {last} of client {client} was begun after the mark's answer, and is there")
        total += complete
        open_ones += complete - acknowledged
    print(total, open_ones)


def hear(arguments):
    with subprocess.Popen(arguments.command, stdout=subprocess.PIPE, text=True) as command:
        for line in command.stdout:
            print(time.time_ns(), line, end="", flush=True)
    sys.exit(command.returncode)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for action in (write, judge):
        command = commands.add_parser(action.__name__)
        command.set_defaults(action=action)
        command.add_argument("kind", choices=KINDS)
        command.add_argument("place")
        command.add_argument("journal")
        if action is write:
            command.add_argument("--clients", type=int, required=True)
            command.add_argument("--until", required=True)
        else:
            command.add_argument("--marked", required=True)
            command.add_argument("--heard", type=int, required=True)
    command = commands.add_parser("hear")
    command.set_defaults(action=hear)
    command.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        arguments.action(arguments)
    except Broken as broken:
        sys.exit(f"{broken}")


main()
