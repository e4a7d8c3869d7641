"""Published layouts of question answering data, one file each. A new one is a file and a line here."""

from __future__ import annotations

from groundtune.formats.beir import BEIR
from groundtune.formats.chats import MESSAGES, PROMPT_COMPLETION
from groundtune.formats.format import Converted, Format, Options
from groundtune.formats.hotpotqa import HOTPOTQA
from groundtune.formats.ms_marco import MS_MARCO
from groundtune.formats.natural_questions import NATURAL_QUESTIONS
from groundtune.formats.raft import RAFT
from groundtune.formats.squad import SQUAD
from groundtune.formats.triviaqa import TRIVIAQA

FORMATS: dict[str, Format] = {
    "squad": SQUAD,
    "natural_questions": NATURAL_QUESTIONS,
    "triviaqa": TRIVIAQA,
    "ms_marco": MS_MARCO,
    "hotpotqa": HOTPOTQA,
    "beir": BEIR,
    "messages": MESSAGES,
    "prompt_completion": PROMPT_COMPLETION,
    "raft": RAFT,
}

__all__ = ["FORMATS", "Converted", "Format", "Options"]
