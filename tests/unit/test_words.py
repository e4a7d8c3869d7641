"""Words of every script: what is compared, searched and counted, and NFC on every road in."""

from __future__ import annotations

import json
import unicodedata

import pytest

from groundtune.arguments import PromptArguments
from groundtune.data.files import read_documents, read_examples, write_documents
from groundtune.data.languages import language_of, languages_of, limits_of
from groundtune.data.numbers import value_of
from groundtune.data.words import places_of, search_words, telling_words, word_count, words
from groundtune.evaluation.arguments import AnswerArguments
from groundtune.evaluation.groundedness import groundedness_scores
from groundtune.evaluation.metrics import exact_match, generation_scores, numeric_match, rouge, token_f1
from groundtune.prepare.formats.format import converted
from groundtune.prepare.pages import ReadOptions, read_pages
from groundtune.prepare.written import parse_answer, parse_questions
from groundtune.retrieval.retrievers import BM25Retriever
from groundtune.schema import Document, Example, Reply, Turn

GERMAN = "Die Öffnungszeiten gelten täglich."
NFD = unicodedata.normalize("NFD", GERMAN)
SENTENCES = {
    "ar": "يمكنك إرجاع المنتج خلال 14 يومًا.",
    "hi": "आप इसे चौदह दिनों में लौटा सकते हैं।",
    "ru": "Вы можете вернуть товар за две недели.",
    "el": "Μπορείτε να το επιστρέψετε σε δύο εβδομάδες.",
    "th": "คุณสามารถคืนสินค้าได้ภายในสิบสี่วัน",
    "ko": "십사 일 이내에 반품할 수 있습니다.",
    "zh": "七天之内可以退货。",
    "ja": "七日以内に返品できます。",
    "he": "אפשר להחזיר את המוצר תוך שבועיים.",
}


# One text, one spelling


@pytest.mark.parametrize("metric", [token_f1, exact_match, numeric_match, lambda a, b: rouge(a, b)["rougeL"]])
def test_composed_and_decomposed_spellings_are_the_same_answer(metric):
    assert metric(NFD, GERMAN) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_documents_are_read_composed(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"documents.{suffix}"
    path.parent.joinpath("raw.jsonl").write_text(json.dumps({"page_content": NFD, "fmt_content": NFD}), "utf-8")
    if suffix == "jsonl":
        path = tmp_path / "raw.jsonl"
    else:
        write_documents(path, [Document(NFD, NFD)])
    assert read_documents(path) == [Document(GERMAN, GERMAN)]
    assert read_documents(path)[0].id == Document(GERMAN, GERMAN).id


def test_examples_are_read_composed_and_so_is_what_a_call_or_a_format_makes(tmp_path):
    row = {"question": NFD, "gold_answer": NFD, "gold_answers": [NFD], "gold_docs": [{"page_content": NFD}]}
    row["chat_history"] = [{"speaker": "user", "message": NFD}]
    (tmp_path / "e.jsonl").write_text(json.dumps(row), "utf-8")
    (read,) = read_examples(tmp_path / "e.jsonl")
    made = converted(NFD, [NFD], [Document(NFD)], history=[Turn("user", NFD)]).example
    for example in (read, made):
        assert example.question == example.answer == example.chat_history[0].message == GERMAN
        assert example.gold_documents == (Document(GERMAN),)
    assert Example(NFD, "", (), gold_answers=(NFD, "x")).gold_answers == (GERMAN, "x")


def test_texts_of_flags_and_folders_are_composed(tmp_path):
    assert PromptArguments(instruction=NFD, user_prefix=NFD).instruction == GERMAN
    assert AnswerArguments(closed_book_instruction=NFD).closed_book_instruction == GERMAN
    for name, text in {"rules.md": f"# {NFD}\n\n{NFD}", "rules.csv": f"text\n{NFD}\n"}.items():
        (tmp_path / name).write_text(text, "utf-8")
        (page,) = read_pages(tmp_path / name, name, ReadOptions())
        assert GERMAN in page.text and NFD not in page.text


def test_a_decomposed_query_finds_a_composed_passage():
    pytest.importorskip("bm25s")
    documents = [Document("Der Preis gilt immer."), Document(GERMAN), Document("Bitte anrufen.")]
    assert found(documents, unicodedata.normalize("NFD", "Öffnungszeiten")) == GERMAN


# Scores


def test_a_chinese_answer_that_differs_in_one_of_nine_characters_is_nearly_right():
    scores = generation_scores("退货期限为七天以内", "退货期限为八天以内")
    assert scores["generation/f1"] == pytest.approx(8 / 9) and scores["generation/rougeL"] == pytest.approx(8 / 9)
    assert 0 < scores["generation/bleu"] < 1 and scores["generation/exact_match"] == 0


@pytest.mark.parametrize("language", SENTENCES)
def test_the_same_answer_has_every_score_1_in_every_script(language):
    text = SENTENCES[language]
    assert list(generation_scores(text, text).values()) == pytest.approx([1] * 9)
    other = next(sentence for name, sentence in SENTENCES.items() if name != language)
    assert rouge(text, other)["rouge1"] == 0
    assert groundedness_scores(text, [Document(f"{other} {text}")])["grounded/tokens"] == 1


def test_punctuation_of_other_scripts_does_not_count():
    assert exact_match("可以，七天内。", "可以七天内") == exact_match("नमस्ते।", "नमस्ते") == exact_match("هل؟", "هل") == 1
    assert exact_match("１０人", "10人") == exact_match("ﾃｽﾄ", "テスト") == exact_match("١٤ يوما", "14 يوما") == 1


def test_latin_text_beside_another_script_keeps_its_words():
    assert words("用 Python 写") == ["用", "python", "写"]
    assert rouge("使用 retrieving", "使用 retrieved")["rouge1"] == 1  # stemmed as ever


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000"), ("1 000", "1000"), ("1\u202f000", "1000"), ("1'000", "1000"), ("1,00,000", "100000"),
        ("3.50", "3.5"), ("3,5 %", "3.5%"), ("1.000.000", "1000000"), ("1.234,50", "1234.5"), ("0.500", "0.5"),
        ("The price is $1,000.00.", "price is $1000"), ("Das kostet 1.000 Euro.", "das kostet 1000 euro"),
        ("−5 °C", "-5 °C"),
    ],
)  # fmt: skip
def test_numbers_of_equal_value_match(one, other):
    assert numeric_match(one, other) == numeric_match(other, one) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "35"), ("3.10.2", "3102"), ("-5", "5"), ("1.000", "1000"), ("3,500", "3.5"), ("1/2", "12"),
        ("5", "five"), ("1" * 40, "1" * 39 + "2"),
    ],
)  # fmt: skip
def test_numbers_of_other_value_do_not_match(one, other):
    assert numeric_match(one, other) == 0


def test_a_number_that_is_none_has_no_value():
    assert value_of("3.10.2") is None and value_of("192.168.0.1") is None
    assert value_of("1.000", decimal_comma=True) == 1000 and value_of("1.000") == 1


# Search


def found(documents: list[Document], query: str) -> str:
    ((best, *_),) = BM25Retriever(documents).search([query], 1)
    return best.document.text if best.score > 0 else ""


PASSAGES = [
    "退货须在收到商品后七天内办理。", "本店每天上午九点开门。", "返品は到着後七日以内に受け付けます。",
    "営業時間は午前九時からです。", "สินค้าสามารถคืนได้ภายในเจ็ดวัน", "ร้านเปิดเวลาเก้าโมงเช้า", "반품은 7일 이내에 가능합니다.",
    "매장은 아침 아홉 시에 엽니다.",
    "Written in C++ by the core team, and it is fast.",
    "It is written in C# and it runs everywhere.",
    "It needs .NET 8 or later, and it is free.", "The IT department answers it.", "It is what it is, and it was.",
    "Write it in C.", "The fee is 1,000 euros, and it is due.", "Version 3.5 reads it.", "الإرجاع ممكن خلال أسبوع.",
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ("几天内可退货？", 0), ("几点开门", 1), ("返品できますか", 2), ("営業時間", 3), ("คืนสินค้า", 4), ("เปิดกี่โมง", 5),
        ("반품하고 싶어요", 6), ("매장이 몇 시에 열어요", 7), ("C++", 8), ("Is there a C# version?", 9), (".NET", 10),
        ("Who is the IT contact?", 11), ("IT", 11), ("a C program", 13), ("1000", 14), ("3.5", 15), ("الإرجاع", 16),
    ],
)  # fmt: skip
def test_search_finds_the_passage_in_every_script_and_by_names_made_of_signs(query, passage):
    pytest.importorskip("bm25s")
    assert found([Document(text) for text in PASSAGES], query) == PASSAGES[passage]


def test_a_query_of_stop_words_alone_finds_what_says_them():
    pytest.importorskip("bm25s")
    documents = [Document(text) for text in ("Open at nine.", "To be or not to be.", "Ring the bell.")]
    assert found(documents, "to be or not to be") == "To be or not to be."


def test_where_all_is_in_capitals_they_mean_nothing():
    assert search_words("HOW DO I USE IT") == search_words("how do i use it")
    assert search_words("IT") == ["IT", "it"] != search_words("it")


@pytest.mark.parametrize("text", ["", "...", "\u200b", "!"])
def test_passages_without_a_word_can_be_searched(text):
    pytest.importorskip("bm25s")
    assert found([Document(text or " x "), Document("a lamp")], "lamp") == "a lamp"


# Length, and what a generator writes


def test_short_questions_of_scripts_without_spaces_are_kept():
    asked = ["几天内可退货？", "怎么退款？", "运费多少？", "営業時間は？", "Who pays?"]
    assert parse_questions("\n".join([*asked, "谁？", "Why?"]), 9) == asked
    assert word_count("几天内可退货") == 3 and word_count("two words") == 2


@pytest.mark.parametrize(
    "text",
    ["Answer: Ten.", "**Answer:** Ten.", "**Answer**: Ten.", "__Answer:__ Ten.", "**Answer: Ten.**", "# Answer: Ten."],
)
def test_a_label_before_the_answer_is_no_part_of_it(text):
    assert parse_answer(Reply(text)) == ("Ten.", True)


@pytest.mark.parametrize(
    "written", ["{}", "“{}”", "「{}」", "«{}»", "1、{}", "（1）{}", "１．{}", "② {}", "a) {}", "- [ ] {}"]
)
@pytest.mark.parametrize("question", ["几天内可退货？", "¿Cuándo abre el museo?", "Когда открыто?", "いつ開きますか。"])
@pytest.mark.parametrize(
    "label", ["", "问题1：", "問題：", "質問: ", "Frage 2: ", "**Pregunta:** ", "Вопрос: ", "Question : "]
)
def test_a_question_has_no_label_number_or_quotes_of_any_language_around_it(written, question, label):
    assert parse_questions(written.format(label + question), 2) == [question]


@pytest.mark.parametrize(
    "label", ["答案：", "回答: ", "Antwort: ", "**Réponse :** ", "Ответ: ", "**Respuesta**: ", "답변："]
)
def test_a_label_in_another_language_is_no_part_of_an_answer(label):
    assert parse_answer(Reply(f"{label}10 000 €.")) == ("10 000 €.", True)


@pytest.mark.parametrize(
    "text", ["Answers vary: some pay.", "Question marks: none.", "答え方は二つある。", "Svarte hull: ja."]
)
def test_words_that_begin_like_a_label_stay(text):
    assert parse_answer(Reply(text)) == (text, True)


@pytest.mark.parametrize("text", ["NOT ANSWERED", "**NOT ANSWERED**", "Not answered.", "Answer: NOT ANSWERED."])
def test_not_answered_is_no_answer_where_it_is_all_that_is_said(text):
    assert parse_answer(Reply(text))[0] == ""


@pytest.mark.parametrize("text", ["The letter was not answered for three weeks.", "Not answered calls are recorded."])
def test_an_answer_that_mentions_what_was_not_answered_is_an_answer(text):
    assert parse_answer(Reply(text))[0] == text


# Languages


def test_a_language_is_known_by_its_script_or_its_commonest_words():
    assert {language: language_of(text) for language, text in SENTENCES.items()} == {name: name for name in SENTENCES}
    assert language_of(GERMAN) == "de" and language_of("How do I return it?") == "en" and language_of("1.000") == ""
    assert language_of("Le prix est de mille euros pour vous.") == "fr"
    assert languages_of(["Die Lampe ist nicht da.", "Der Versand ist frei und gut.", "42", "No."]) == {"de": 2}


def test_what_cannot_be_measured_in_a_language_is_listed():
    assert limits_of("en", True, True) == []
    assert "compounds" in " ".join(limits_of("de", True, False))
    assert "compounds" not in " ".join(limits_of("de", False, False))
    assert "characters" in limits_of("zh", False, True)[0]
    assert "--abstentions" in " ".join(limits_of("ru", False, True))


@pytest.mark.parametrize(
    ("answer", "text", "marked"),
    [
        ("The library opens.", "Opening: a Library opened.", ["Opening", "Library", "opened"]),
        ("it is the", "it is the", []),
        ("für Öffnungen", "Die Öffnungen 😀 für alle", ["Öffnungen", "für"]),
        ("図書館", "その図書館は", ["図", "書", "館"]),
        ("１２", "12 and １２", ["12", "１２"]),
    ],
)
def test_the_places_of_an_answers_words_are_where_they_stand_in_the_text(answer, text, marked):
    assert [text[begin:end] for begin, end in places_of(telling_words(answer), text)] == marked


def test_a_digit_that_pythons_unicode_does_not_know_stays_as_it_is():
    for digit in ("\U0001ccf3", "\U0001e4f1", "\U00010d41"):  # of Unicode 15 and 16
        assert words(f"{digit} kg")[-1] == "kg"
