"""The compact LM head's tiles: TRL's results in narrower ones, and TRL's own size afterwards."""

import pytest
from test_packing import PAD, SMALL, batch, packed_score, scored, with_head
from transformers import LlamaConfig
from trl.trainer import utils

from grpo_math.trainer import lm_head
from grpo_math.trainer.lm_head import TILE, add_compact_lm_head, tiles_for_a_cache

OWN = utils._CHUNKED_LOGPROB_CHUNK_SIZE
ROWS = [([3, 4, 5], [650, 9, 10, 11]), ([3, 4, 5], [8, 300]), ([12], [13, 14])]


@pytest.mark.parametrize(("rows", "columns"), [(1, OWN), (826, TILE // 826), (10**6, 256)])
def test_a_tile_has_a_number_of_logits_and_not_too_few_columns(rows, columns):
    with tiles_for_a_cache(rows):
        assert columns == utils._CHUNKED_LOGPROB_CHUNK_SIZE
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == OWN


def test_the_head_computes_in_narrow_tiles_and_gives_the_same(monkeypatch):
    model = with_head(LlamaConfig(**(SMALL | {"vocab_size": 700, "pad_token_id": PAD})))
    expected = scored(model, *batch(ROWS), packed_score(model))
    add_compact_lm_head(model)
    monkeypatch.setattr(lm_head, "TILE", 1)
    columns = []
    model.model.register_forward_hook(lambda *args: columns.append(utils._CHUNKED_LOGPROB_CHUNK_SIZE))
    for ours, theirs in zip(scored(model, *batch(ROWS), packed_score(model)), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    assert columns == [256]


def test_after_a_failed_forward_pass_trl_has_its_own_size(monkeypatch):
    model = with_head(LlamaConfig(**SMALL))
    add_compact_lm_head(model)

    def fail(*args):
        assert utils._CHUNKED_LOGPROB_CHUNK_SIZE < OWN
        raise MemoryError

    monkeypatch.setattr(lm_head, "TILE", 1)
    model.model.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        scored(model, *batch(ROWS[2:]), packed_score(model))
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == OWN
