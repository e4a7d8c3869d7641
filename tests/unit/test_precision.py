"""A run is asked in the precision that it was trained in only where the hardware computes it."""

from __future__ import annotations

import json

import pytest

from groundtune.commands.evaluate import inference_arguments


@pytest.mark.parametrize(
    ("trained", "typed", "native", "asked"),
    [
        (True, {}, True, True),
        (True, {}, False, False),
        (True, {"bf16": True}, False, True),
        (False, {}, True, False),
        (None, {}, True, True),
    ],
)
def test_bfloat16_is_emulated_only_if_that_is_asked_for(tmp_path, monkeypatch, caplog, trained, typed, native, asked):
    monkeypatch.setattr("groundtune.model.loading.computes_bf16", lambda: native)
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"training": {"bf16": trained}}}))
    arguments = inference_arguments({"model": str(tmp_path), **typed}, for_questions=False, again=lambda more: "")
    assert arguments.bf16 is asked
    assert ("asked in float32" in caplog.text) == (trained is True and not native and not typed)
