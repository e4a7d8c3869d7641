"""Published formats of question answering data, one file each. To add one, add a file and a line here."""

from __future__ import annotations

from groundtune.prepare.formats.beir import BEIR
from groundtune.prepare.formats.chats import ALPACA, MESSAGES, PROMPT_COMPLETION, SHAREGPT
from groundtune.prepare.formats.csv import CSV
from groundtune.prepare.formats.feedback import FEEDBACK
from groundtune.prepare.formats.format import Converted, Format, Options
from groundtune.prepare.formats.hotpotqa import HOTPOTQA
from groundtune.prepare.formats.ms_marco import MS_MARCO
from groundtune.prepare.formats.natural_questions import NATURAL_QUESTIONS
from groundtune.prepare.formats.raft import RAFT
from groundtune.prepare.formats.squad import SQUAD
from groundtune.prepare.formats.triviaqa import TRIVIAQA

FORMATS: dict[str, Format] = {
    "squad": SQUAD,
    "natural_questions": NATURAL_QUESTIONS,
    "triviaqa": TRIVIAQA,
    "ms_marco": MS_MARCO,
    "hotpotqa": HOTPOTQA,
    "beir": BEIR,
    "messages": MESSAGES,
    "prompt_completion": PROMPT_COMPLETION,
    "sharegpt": SHAREGPT,
    "alpaca": ALPACA,
    "csv": CSV,
    "raft": RAFT,
    "feedback": FEEDBACK,
}

__all__ = ["FORMATS", "Converted", "Format", "Options"]
