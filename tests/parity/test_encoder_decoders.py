"""Encoder-decoders compute what `transformers` computes from the same weights, after import and after export."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.models import convert
from pretrain.models.config import RelativeBias
from pretrain.models.convert.engine import to_theirs
from pretrain.models.convert.folder import describe
from pretrain.models.generate.config import GREEDY
from pretrain.models.generate.decode import generate
from pretrain.models.layers.positions import buckets
from pretrain.models.transformer import Inputs
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.objectives.language import next_token
from tests.parity import encoder_decoders as zoo
from tests.parity.zoo import torch, transformers

TOLERANCE = 2e-5
PACKABLE = ("t5", "umt5", "bart", "mbart", "pegasus", "marian")
START, MADE = 2, 14
READ = (19, 7, 12)
"""Tokens in each of three sources."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Their model and ours read from its folder; made once for each name."""
    made = {}

    def get(name: str):
        if name not in made:
            model, folder = zoo.theirs(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, convert.load(folder)[1]
        return made[name]

    return get


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("name", zoo.MODELS)
def test_hidden_states_and_logits_are_the_same_after_import_and_after_export(name, loaded, tmp_path):
    model, ours = loaded(name)
    pairs = zoo.pairs()
    expected = zoo.their_answer(model, *pairs)
    assert_same(zoo.our_answer(ours, *pairs), expected)
    convert.save(ours, tmp_path, length=40)
    reread, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, dtype="float32", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same(zoo.their_answer(reread.eval(), *pairs), expected)
    _, again = convert.load(tmp_path)
    for a, b in zip(zoo.our_answer(again, *pairs), zoo.our_answer(ours, *pairs)):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", PACKABLE)
def test_padding_of_source_and_target_changes_nothing(name, loaded):
    model, ours = loaded(name)
    source, target = zoo.pairs()
    read, written = np.array(READ), np.array([4, 23, 15])
    source_segments, segments = (np.arange(n) < lengths[:, None] for n, lengths in ((19, read), (23, written)))
    masked = zoo.our_answer(ours, source, target, source_segments=source_segments, segments=segments)
    theirs = zoo.their_answer(model, source, target, source_segments)
    for row, (s, t) in enumerate(zip(read, written)):
        alone = zoo.their_answer(model, source[row : row + 1, :s], target[row : row + 1, :t])
        for found in (masked, theirs):
            assert_same((found[0][row, :s], *(x[row, :t] for x in found[1:])), [x[0] for x in alone])


@pytest.mark.parametrize("name", PACKABLE)
def test_two_pairs_in_one_row_give_what_they_give_alone(name, loaded):
    model, ours = loaded(name)
    source, target = zoo.pairs(rows=2)
    read, written = (8, 11), (13, 6)

    def packed(rows, lengths, room):
        def of(parts):
            return np.concatenate([*parts, np.zeros(room - sum(lengths), np.int32)])[None]

        numbers = enumerate(lengths)
        return (
            of([row[:n] for row, n in zip(rows, lengths)]),
            of([np.full(n, i + 1) for i, n in numbers]),
            of([np.arange(n) for n in lengths]),
        )

    sources, source_segments, source_positions = packed(source, read, 24)
    targets, segments, positions = packed(target, written, 21)
    more = {"source_segments": source_segments, "source_positions": source_positions}
    found = zoo.our_answer(ours, sources, targets, **more, segments=segments, positions=positions)
    s0 = t0 = 0
    for row, (s, t) in enumerate(zip(read, written)):
        alone = zoo.their_answer(model, source[row : row + 1, :s], target[row : row + 1, :t])
        here = (found[0][0, s0 : s0 + s], *(x[0, t0 : t0 + t] for x in found[1:]))
        assert_same(here, [x[0] for x in alone])
        s0, t0 = s0 + s, t0 + t


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("count", "longest"), [(32, 128), (8, 12), (64, 1000)])
def test_every_distance_falls_into_the_bucket_of_transformers(count, longest, causal):
    distances = np.arange(-1500, 1501, dtype=np.int32)
    attention = transformers.models.t5.modeling_t5.T5Attention
    theirs = attention._relative_position_bucket(torch.from_numpy(distances), not causal, count, longest)
    position = RelativeBias(buckets=count, max_distance=longest)
    assert np.array_equal(jax.jit(buckets, static_argnums=(0, 2))(position, distances, causal), theirs.numpy())


@pytest.mark.parametrize("name", ["t5", "umt5", "bart", "pegasus", "marian"])
def test_gradients_are_those_of_torch(name, loaded):
    model, ours = loaded(name)
    source, labels = zoo.pairs()
    mask, asked = (np.arange(n) < np.array(lengths)[:, None] for n, lengths in ((19, READ), (23, (23, 9, 16))))
    shifted = np.concatenate([np.full((3, 1), START), labels[:, :-1]], axis=1)
    arrays = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": shifted}
    arrays["labels"] = np.where(asked, labels, -100)
    model.zero_grad()
    theirs = model(**{n: torch.from_numpy(a.astype(np.int64)) for n, a in arrays.items()}).loss
    theirs.backward()
    expected = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}

    encoder = Inputs(tokens=jnp.asarray(source), segments=jnp.asarray(mask, jnp.int32))
    inputs = Inputs(tokens=jnp.asarray(shifted, jnp.int32), encoder=encoder)
    batch = Batch(inputs=inputs, targets=jnp.asarray(labels), weights=jnp.asarray(asked, jnp.float32))
    objective = next_token(NextToken(loss=LossConfig(chunk=7)))

    @jax.value_and_grad
    def mean(model):
        loss = objective(model, batch, None)
        return loss.total / loss.weight

    loss, grads = jax.jit(mean, compiler_options={"xla_backend_optimization_level": 0})(ours)
    assert abs(float(loss) - theirs.item()) <= 1e-5
    found = {n: t.read() for n, t in to_theirs(describe(ours.config)[0], grads, np.dtype(np.float32)).items()}
    assert set(expected) <= set(found)
    whole = np.sqrt(sum(np.square(g).sum() for g in expected.values()))
    for key, gradient in expected.items():
        if key.endswith("k_proj.bias"):  # 0 but for rounding: what all keys share changes no softmax
            assert max(np.linalg.norm(found[key]), np.linalg.norm(gradient)) <= 1e-6 * whole, key
        else:
            assert np.linalg.norm(found[key] - gradient) <= 1e-3 * np.linalg.norm(gradient), key


def their_continuation(model, source, **settings) -> list[list[int]]:
    """Without the start token, and without the padding behind a stop."""
    ids, mask = torch.from_numpy(source.astype(np.int64)), torch.arange(source.shape[1]) < torch.tensor(READ)[:, None]
    model.generation_config = transformers.GenerationConfig()
    config = transformers.GenerationConfig(
        max_new_tokens=MADE, decoder_start_token_id=START, pad_token_id=0, bos_token_id=None, **settings
    )
    out = model.generate(ids, attention_mask=mask.long(), generation_config=config)[:, 1:].tolist()
    stop = settings.get("eos_token_id")
    return [row[: row.index(stop) + 1] if stop in row else row for row in out]


@pytest.mark.parametrize("name", zoo.CONTINUED)
def test_greedy_continuations_are_the_same_with_and_without_a_stop(name, loaded):
    model, ours = loaded(name)
    source, _ = zoo.pairs()
    sources = [row[:n].tolist() for row, n in zip(source, READ)]
    options = {"max_tokens": MADE, "sampling": replace(GREEDY, no_repeat_ngram=2), "key": jax.random.key(0)}
    settings = {"do_sample": False, "no_repeat_ngram_size": 2}  # else these models say one word for ever
    expected = their_continuation(model, source, **settings)
    assert len({token for row in expected for token in row}) > 5
    assert generate(ours, [[START]] * 3, sources=sources, **options).tokens == expected
    stop = expected[0][5]
    stopped = their_continuation(model, source, **settings, eos_token_id=stop)
    assert len(stopped[0]) <= 6
    assert generate(ours, [[START]] * 3, sources=sources, stop_tokens=[stop], **options).tokens == stopped
