"""What a reply of the generator holds: questions or an answer, in any language, without what is written around them."""

from __future__ import annotations

import re

from groundtune.data.words import word_count
from groundtune.schema import Reply

NOT_ANSWERED = "NOT ANSWERED"
_LEAST_WORDS = 2  # of a question
# Labels before a question, an answer and a passage, in the language of the documents or of the user's own prompt.
_QUESTION = (
    "question|frage|pregunta|domanda|pergunta|vraag|pytanie|otázka|fråga|spørgsmål|spørsmål|kysymys|kérdés|întrebare|"
    "вопрос|питання|ερώτηση|soru|سؤال|السؤال|שאלה|प्रश्न|คำถาม|pertanyaan|问题|問題|问|問|質問|질문"
)
_ANSWER = (
    "answer|antwort|réponse|respuesta|risposta|resposta|antwoord|odpowiedź|odpověď|svar|vastaus|válasz|răspuns|"
    "ответ|відповідь|απάντηση|cevap|yanıt|إجابة|الإجابة|תשובה|उत्तर|คำตอบ|jawaban|答案|回答|答え|答|답변|답"
)
_PASSAGE = "passage|abschnitt|textstelle|pasaje|brano|passagem|fragment|отрывок|段落|지문"
_COLON = "[:：]"
# A list number is not followed by a digit: "3.5 mm" and "10:30" do not begin with one.
_NUMBERING = re.compile(
    r"^\W*(?:\d+\s*(?:[.):](?!\d)|[：、．）])|[①-⑳]|[a-h]\)\s|[-*•](?:\s*\[.?\])?)\s*", re.IGNORECASE
)
_LABELLED = re.compile(rf"^\W*(?:q|{_QUESTION})(?:\s*\d+\s*(?:[.)]|{_COLON})(?!\d)|\s*{_COLON})\s*", re.IGNORECASE)
_AROUND = " \t\"'*_“”„«»‹›「」『』"  # quotes and emphasis
# "Answer:", "**Answer:**" or "**Answer**:" before an answer; "**Answer: Ten euros.**".
_LABEL = re.compile(
    rf"^[\s#>]*(?P<mark>[*_]{{0,3}})(?:{_ANSWER})(?:(?P=mark)\s*{_COLON}|\s*{_COLON}\s*(?P=mark))\s*", re.IGNORECASE
)
_MARKED = re.compile(
    rf"^[\s#>]*(?P<mark>[*_]{{1,3}})(?:{_ANSWER})\s*{_COLON}(?!\s*(?P=mark))\s*(?P<answer>.*?)(?P=mark)\s*$",
    re.IGNORECASE | re.DOTALL,
)


def _next(labels: str) -> re.Pattern[str]:
    """The beginning of another example, with which a model without a chat template continues."""
    return re.compile(rf"\n[\s*_#]*(?:{labels.title()})[*_]*\s*{_COLON}")


_NEXT_PASSAGE, _NEXT_EXAMPLE = _next(_PASSAGE), _next(f"{_PASSAGE}|{_QUESTION}")
# The whole reply says that there is no answer, or its first sentence does in the capitals that the prompt asks for.
_NO_ANSWER = re.compile(rf"[\W_]*(?:(?i:{NOT_ANSWERED})[\W_]*|{NOT_ANSWERED}[*_]*[.!:;\n\u2014-].*)", re.DOTALL)
# At the end of a line. After a Greek letter a semicolon counts, the Armenian mark is inside the questioning word, and a
# Japanese question may end in its particle.
_QUESTION_MARK = re.compile(r"[?？؟]$|[\u0370-\u03ff\u1f00-\u1fff][;\u037e]$|՞|か。$")


def parse_questions(text: str, at_most: int) -> list[str]:
    """The questions in a reply: lines with a question mark of any script, without list numbers or duplicates."""
    lines = (own_question(line) for line in text.splitlines())
    asked = (line for line in lines if _QUESTION_MARK.search(line) and word_count(line) >= _LEAST_WORDS)
    return list(dict.fromkeys(asked))[:at_most]


def own_question(line: str) -> str:
    """A question without a label, a list number, or quotes and emphasis around it."""
    return _LABELLED.sub("", _NUMBERING.sub("", line.strip())).strip(_AROUND)


def own_part(reply: Reply) -> str:
    """The text of a reply; if it did not end by itself, without the next example that a base model continues with."""
    return reply.text if reply.finished else _NEXT_PASSAGE.split(f"\n{reply.text}", maxsplit=1)[0]


def parse_answer(reply: Reply, one_line: bool = False) -> tuple[str, bool]:
    """The answer in a reply (empty if the reply says that there is none), and whether it was finished.

    Text with which a base model continues after its answer is cut off: the next example or, if the examples of its
    prompt have answers of `one_line`, the next line. Such a model often repeats itself up to the token limit.
    """
    first, *more = reply.text.strip().split("\n") if one_line else _NEXT_EXAMPLE.split(reply.text)
    marked = _MARKED.match(first)
    answer = (marked["answer"] if marked else _LABEL.sub("", first.strip())).strip()
    return "" if _NO_ANSWER.fullmatch(answer) else answer, reply.finished or bool(more)
