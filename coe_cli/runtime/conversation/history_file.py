"""The file of questions and answers: SQLite, readable by its owner only, bounded in size, searched with FTS5."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from coe_cli.core.answers.conversations import Conversation, ConversationRow, Exchange, LoggedMessage, Match
from coe_cli.errors import CoeError, UsageError
from coe_cli.runtime.atomic_write import make_private

SCHEMA_VERSION = 1
MAX_BYTES = 256 * 2**20
"""The file is kept below this; the oldest conversations go first."""

_LOCK_WAIT_S = 5.0
_LOCK_LOOK_S = 0.01
_MIGRATIONS = (
    """
    CREATE TABLE conversations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        started_at REAL NOT NULL,
        updated_at REAL NOT NULL
    );
    CREATE INDEX conversations_by_time ON conversations (updated_at);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        created_at REAL NOT NULL,
        model TEXT,
        expert TEXT,
        provider TEXT,
        profile TEXT,
        finish_reason TEXT,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        load_s REAL,
        first_token_s REAL,
        decode_s REAL
    );
    CREATE INDEX messages_by_conversation ON messages (conversation_id, id);
    """,
)
"""Step n brings a file of version n to n + 1."""

_ANSWER_COLUMNS = LoggedMessage.__struct_fields__[3:]
"""What an ``Exchange`` says of its answer."""


class History:
    """The open file. Use it as a context manager.

    Raises:
        CoeError: the file cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path, *, max_conversations: int = 1000, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_conversations = max_conversations
        self._max_bytes = max_bytes
        with self._explained():
            make_private(path)  # SQLite gives its -wal and -shm the same permissions
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
            try:
                self._use_write_ahead_log()
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute("PRAGMA secure_delete = ON")
                self._migrate()
                self._has_fts = self._open_index()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def _use_write_ahead_log(self) -> None:
        """SQLite does not wait for its lock when two connections change the journal mode of one file at once."""
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_LOOK_S)

    # --- writing

    def record(self, exchange: Exchange, conversation_id: int | None = None) -> int:
        """Add an exchange to a conversation, or begin one; returns the conversation's id.

        A conversation that has been deleted meanwhile is begun anew.
        """
        now = time.time()
        with self._explained(), self._transaction():
            cursor = self._db.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", (now, conversation_id))
            if cursor.rowcount == 0 or conversation_id is None:
                cursor = self._db.execute(
                    "INSERT INTO conversations (started_at, updated_at) VALUES (?, ?)", (now, now)
                )
                conversation_id = int(cursor.lastrowid or 0)
            if exchange.system != self._system_of(conversation_id):
                self._add(conversation_id, "system", exchange.system, now)
            self._add(conversation_id, "user", exchange.question, now)
            self._add(conversation_id, "assistant", exchange.answer, now, exchange)
            self._prune()
        return conversation_id

    def remove(self, conversation_id: int) -> None:
        """Delete one conversation.

        Raises:
            UsageError: there is none with that id.
        """
        with self._explained(), self._transaction():
            if self._db.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation_id,)).fetchone() is None:
                raise _unknown(conversation_id)
            self._delete(conversation_id)
        self._give_back()

    def clear(self) -> int:
        """Delete every conversation; returns how many there were."""
        with self._explained(), self._transaction():
            (count,) = self._db.execute("SELECT count(*) FROM conversations").fetchone()
            if self._has_fts:
                self._db.execute("INSERT INTO messages_fts (messages_fts) VALUES ('delete-all')")
            self._db.execute("DELETE FROM conversations")
        self._give_back()
        return int(count)

    # --- reading

    def last_conversation(self) -> Conversation | None:
        """The conversation that was added to last."""
        with self._explained():
            row = self._db.execute("SELECT conversation_id FROM messages ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else self.conversation(row[0])

    def conversation(self, conversation_id: int) -> Conversation:
        """One conversation with its messages.

        Raises:
            UsageError: there is none with that id.
        """
        with self._explained():
            head = self._db.execute(
                "SELECT id, started_at, updated_at FROM conversations WHERE id = ?", (conversation_id,)
            ).fetchone()
            if head is None:
                raise _unknown(conversation_id)
            columns = ", ".join(LoggedMessage.__struct_fields__)
            rows = self._db.execute(
                f"SELECT {columns} FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)
            ).fetchall()
        conversation_id, started_at, updated_at = head
        return Conversation(conversation_id, started_at, updated_at, [LoggedMessage(*row) for row in rows])

    def conversations(self, limit: int = 20) -> list[ConversationRow]:
        """The conversations, the last one first."""
        with self._explained():
            rows = self._db.execute(
                """
                SELECT c.id, c.started_at, c.updated_at,
                    (SELECT substr(content, 1, 200) FROM messages WHERE conversation_id = c.id AND role = 'user'
                        ORDER BY id LIMIT 1),
                    (SELECT count(*) FROM messages WHERE conversation_id = c.id AND role = 'user'),
                    (SELECT model FROM messages WHERE conversation_id = c.id AND role = 'assistant'
                        ORDER BY id DESC LIMIT 1),
                    (SELECT expert FROM messages WHERE conversation_id = c.id AND role = 'assistant'
                        ORDER BY id DESC LIMIT 1)
                FROM conversations c ORDER BY (SELECT max(id) FROM messages WHERE conversation_id = c.id) DESC LIMIT ?
                """,
                (limit,),
            ).fetchall()
        return [ConversationRow(i, a, b, " ".join((title or "").split()), *rest) for i, a, b, title, *rest in rows]

    def search(self, words: str, limit: int = 20) -> list[Match]:
        """Questions and answers that hold every one of ``words``, best first; case does not matter."""
        terms = words.replace("\0", " ").split()
        if not terms:
            return []
        with self._explained():
            if self._has_fts:
                query = " ".join('"' + term.replace('"', '""') + '"' for term in terms)
                rows = self._db.execute(
                    """
                    SELECT m.conversation_id, m.role, m.created_at, snippet(messages_fts, 0, '', '', '…', 24)
                    FROM messages_fts JOIN messages m ON m.id = messages_fts.rowid
                    WHERE messages_fts MATCH ? AND m.role != 'system' ORDER BY rank, m.id DESC LIMIT ?
                    """,
                    (query, limit),
                ).fetchall()
            else:
                condition = " AND ".join(["content LIKE ? ESCAPE '\\'"] * len(terms))
                patterns = [f"%{_like(term)}%" for term in terms]
                rows = self._db.execute(
                    f"""
                    SELECT conversation_id, role, created_at,
                        substr(content, max(1, instr(lower(content), lower(?)) - 60), 160)
                    FROM messages WHERE {condition} AND role != 'system' ORDER BY id DESC LIMIT ?
                    """,
                    (terms[0], *patterns, limit),
                ).fetchall()
        return [Match(*row) for row in rows]

    # --- inside

    def _add(self, conversation_id: int, role: str, content: str, now: float, exchange: Exchange | None = None) -> None:
        values = [getattr(exchange, name) if exchange is not None else None for name in _ANSWER_COLUMNS]
        content = content.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored
        cursor = self._db.execute(
            f"INSERT INTO messages (conversation_id, role, content, created_at, {', '.join(_ANSWER_COLUMNS)})"
            f" VALUES (?, ?, ?, ?{', ?' * len(_ANSWER_COLUMNS)})",
            (conversation_id, role, content, now, *values),
        )
        if self._has_fts:
            self._db.execute("INSERT INTO messages_fts (rowid, content) VALUES (?, ?)", (cursor.lastrowid, content))

    def _system_of(self, conversation_id: int) -> str:
        row = self._db.execute(
            "SELECT content FROM messages WHERE conversation_id = ? AND role = 'system' ORDER BY id DESC LIMIT 1",
            (conversation_id,),
        ).fetchone()
        return "" if row is None else str(row[0])

    def _delete(self, conversation_id: int) -> None:
        if self._has_fts:
            self._db.execute(
                "INSERT INTO messages_fts (messages_fts, rowid, content)"
                " SELECT 'delete', id, content FROM messages WHERE conversation_id = ?",
                (conversation_id,),
            )
        self._db.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))

    def _prune(self) -> None:
        """The oldest conversations go while there are too many or the file is too large; the newest one stays."""
        (count,) = self._db.execute("SELECT count(*) FROM conversations").fetchone()
        while count > 1 and (count > self._max_conversations or self._bytes() > self._max_bytes):
            (oldest,) = self._db.execute(
                "SELECT conversation_id FROM messages GROUP BY conversation_id ORDER BY max(id) LIMIT 1"
            ).fetchone()
            self._delete(oldest)
            count -= 1

    def _bytes(self) -> int:
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _give_back(self) -> None:
        """What was deleted must not stay readable in the file or its log; best effort while another has it open."""
        with contextlib.suppress(sqlite3.OperationalError):
            if self._has_fts:
                self._db.execute("INSERT INTO messages_fts (messages_fts) VALUES ('optimize')")
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _migrate(self) -> None:
        if self._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
            return
        with self._transaction():  # another process may be doing the same: look again inside
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise CoeError(
                    f"{self._path} was written by a newer coe (version {version}, this one knows {SCHEMA_VERSION})",
                    "Update coe-cli, or move the file away.",
                )
            for step in _MIGRATIONS[version:]:
                for statement in step.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _open_index(self) -> bool:
        """The full-text index, made where this SQLite has FTS5 and it is missing; False without FTS5."""
        look = "SELECT 1 FROM sqlite_master WHERE name = 'messages_fts'"
        try:
            if self._db.execute(look).fetchone() is None:
                with self._transaction():
                    if self._db.execute(look).fetchone() is None:
                        self._db.execute(
                            "CREATE VIRTUAL TABLE messages_fts USING fts5"
                            " (content, content='messages', content_rowid='id', tokenize='unicode61')"
                        )
                        self._db.execute("INSERT INTO messages_fts (messages_fts) VALUES ('rebuild')")
            self._db.execute("SELECT rowid FROM messages_fts WHERE messages_fts MATCH 'x' LIMIT 1").fetchone()
        except sqlite3.OperationalError as error:
            if "fts5" not in str(error):
                raise
            return False
        return True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
            hint = (
                "Move the file away; coe begins a new one." if damaged else "Check the folder, its owner and its room."
            )
            raise CoeError(f"the history in {self._path} cannot be used: {error}", hint) from error


def _like(term: str) -> str:
    return term.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _unknown(conversation_id: int) -> UsageError:
    return UsageError(f"there is no conversation {conversation_id}", "See `coe logs list`.")
