"""The prefix methods: values, training, masks, and that no example sees another one's tokens."""

import math

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import PrefixEncoder, PrefixLayer, _reference
from tests.delta.layers import random_input, randomise, values_of

HEADS, CHANNELS, LENGTH, TOKENS = 2, 4, 3, 2
HIDDEN = HEADS * CHANNELS


def _layer(batch_size=1, dropout=0.0):
    return randomise(PrefixLayer(TOKENS * batch_size, batch_size, HEADS, HIDDEN, 5, 6, dropout))


def _encoder(projection=True, dropout=0.0):
    return randomise(PrefixEncoder(TOKENS, 3, HEADS, CHANNELS, projection, 5, dropout))


def _flatten(states):
    """(batch, heads, length, channels) as (batch * length, hidden)."""
    return states.transpose(0, 2, 1, 3).reshape(-1, HIDDEN)


def _unflatten(rows, batch):
    return rows.reshape(batch, -1, HEADS, CHANNELS).transpose(0, 2, 1, 3)


class Extended(nn.Cell):
    """The one line that changes in an attention, with its options fixed."""

    def __init__(self, prefix, **options):
        super().__init__()
        self.prefix = prefix
        self.of_encoder = isinstance(prefix, PrefixEncoder)
        self.options = options

    def construct(self, key, value, attention_mask):
        if self.of_encoder:
            own = self.prefix(key.shape[0], mstype.float32)[1]
            return self.prefix.extend(own, key, value, attention_mask, **self.options)
        return self.prefix.extend(key, value, attention_mask, **self.options)


class Attention(nn.Cell):
    """Scaled dot products over extended keys and values; the mask is 1 = visible."""

    def __init__(self, prefix):
        super().__init__()
        self.extended = Extended(prefix)

    def construct(self, query, key, value, attention_mask):
        key, value, attention_mask = self.extended(key, value, attention_mask)
        scores = ops.matmul(query, key.swapaxes(-1, -2)) / math.sqrt(CHANNELS)
        weights = ops.softmax(scores + (1 - attention_mask) * -1e9, -1)
        return ops.matmul(weights, value)


class Loss(nn.Cell):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def construct(self, states, attention_mask):
        return (self.attention(states, states, states, attention_mask) - 1).square().mean()


def _causal(batch=2):
    return np.tril(np.ones((batch, 1, LENGTH, LENGTH), np.float32))


def _states(batch=2, seed=1):
    return random_input((batch, HEADS, LENGTH, CHANNELS), seed=seed)


PREFIXES = {
    "layer": lambda: _layer(),
    "layer_by_example": lambda: _layer(2),
    "encoder": lambda: _encoder(False),
    "encoder_projected": lambda: _encoder(True),
}


def test_the_prefix_layer_follows_its_formula(mode):
    layer = _layer(2)
    past_key, past_value = layer()
    expected_key, expected_value = _reference.prefix_layer(values_of(layer))
    assert past_key.shape == past_value.shape == (2 * TOKENS, HIDDEN)
    np.testing.assert_allclose(past_key.asnumpy(), expected_key, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(past_value.asnumpy(), expected_value, rtol=2e-4, atol=2e-4)
    assert np.abs(expected_key - expected_value).max() > 0.1


@pytest.mark.parametrize("projection", [True, False])
def test_the_encoder_follows_its_formula(mode, projection):
    encoder = _encoder(projection)
    expected = _reference.prefix_encoder(values_of(encoder), 2, 3, HEADS)
    for arguments, dtype, tolerance in (((2,), mstype.float16, 5e-3), ((2, mstype.float32), mstype.float32, 2e-4)):
        prefixes = encoder(*arguments)
        assert len(prefixes) == 3
        for prefix, values in zip(prefixes, expected, strict=True):
            assert prefix.shape == (2, 2, HEADS, TOKENS, CHANNELS)
            assert prefix.dtype == dtype
            np.testing.assert_allclose(prefix.asnumpy(), values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("projection", [True, False])
def test_the_prefix_of_one_layer_is_that_of_all_layers(mode, projection):
    encoder = _encoder(projection)

    class LayerByLayer(nn.Cell):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def construct(self, batch, dtype):
            return tuple([self.encoder.layer_prefix(layer, batch, dtype) for layer in range(3)])

    for dtype in (mstype.float32, mstype.float16):
        for prefix, expected in zip(LayerByLayer()(2, dtype), encoder(2, dtype), strict=True):
            assert prefix.dtype == expected.dtype
            np.testing.assert_allclose(prefix.asnumpy(), expected.asnumpy(), rtol=1e-6, atol=1e-6)


def test_layers_that_ask_for_their_prefix_draw_masks_of_their_own(mode):
    """Save for its mask, each layer and example would get the same tokens here."""
    encoder = PrefixEncoder(TOKENS, 2, HEADS, CHANNELS, False, 5, 0.5).set_train()
    encoder.mindpet_delta_ptuning2_embedding.embedding_table.set_data(Tensor(np.ones((TOKENS, 4 * HIDDEN), np.float32)))
    step = Parameter(Tensor(3, mstype.int32), name="step", requires_grad=False)
    for number, dropout in enumerate(cell for _, cell in encoder.cells_and_names() if isinstance(cell, nn.Dropout)):
        dropout.use_mask(step, 1, number)

    class LayerByLayer(nn.Cell):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def construct(self):
            first, again = (self.encoder.layer_prefix(0, 3, mstype.float32) for _ in range(2))
            return first, again, self.encoder.layer_prefix(1, 3, mstype.float32)

    first, again, second = (prefix.asnumpy() for prefix in LayerByLayer()())
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 2}
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_the_encoder_arranges_its_axes_as_told():
    arguments = (TOKENS, 3, HEADS, CHANNELS, False, 5, 0.0)
    plain = randomise(PrefixEncoder(*arguments))(2, mstype.float32)
    arranged = randomise(PrefixEncoder(*arguments, None, (2, 0, 1, 3, 4)))(2, mstype.float32)
    for prefix, other in zip(plain, arranged, strict=True):
        assert np.array_equal(prefix.asnumpy(), other.asnumpy().swapaxes(2, 3))


def test_the_readable_prefix_is_the_present_one():
    layer = _layer(2)
    for spread in (0.5, 0.2):
        randomise(layer, spread=spread)
        for read, made in zip((layer.past_key_reparam, layer.past_value_reparam), layer(), strict=True):
            assert read.shape == (2 * TOKENS, HIDDEN)
            np.testing.assert_allclose(read.asnumpy(), made.asnumpy(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_training_reaches_every_parameter_and_moves_the_loss(mode, prefix):
    network = Loss(Attention(prefix()))
    states, mask = Tensor(_states()), Tensor(_causal())
    parameters = network.trainable_params()
    before = [parameter.asnumpy().copy() for parameter in parameters]
    step = nn.TrainOneStepCell(network, nn.SGD(parameters, 0.5))
    losses = [float(step(states, mask).asnumpy())]
    for parameter, value in zip(parameters, before, strict=True):
        gradient = (value - parameter.asnumpy()) / 0.5
        assert np.abs(gradient).max() > 1e-6, parameter.name
    losses += [float(step(states, mask).asnumpy()) for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_an_example_never_sees_another_one(mode, prefix):
    """Changing example 2 leaves example 1 bit-identical, in both shapes of keys."""
    attention = Attention(prefix())
    first, other = _states(), _states()
    other[1] = _states(1, seed=7)[0]
    mask = Tensor(_causal())
    outputs = [attention(*[Tensor(states)] * 3, mask).asnumpy() for states in (first, other)]
    assert np.array_equal(outputs[0][0], outputs[1][0])
    assert not np.array_equal(outputs[0][1], outputs[1][1])
    if attention.extended.of_encoder:
        return
    flat = Extended(attention.extended.prefix)
    for index in (0, 1):
        rows = [flat(Tensor(_flatten(states)), Tensor(_flatten(states)), mask)[index] for states in (first, other)]
        rows = [_unflatten(part.asnumpy(), 2) for part in rows]
        assert np.array_equal(rows[0][0], rows[1][0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_each_example_is_extended_by_its_own_slice(mode, dtype):
    layer = _layer(2)
    states = _states().astype(dtype)
    expected = [_unflatten(past, 2) for past in _reference.prefix_layer(values_of(layer))]
    extended = Extended(layer)
    tolerance = 2e-4 if dtype == np.float32 else 5e-3
    for given in (states, _flatten(states), _flatten(states).reshape(2, LENGTH, HIDDEN)):
        *outputs, _ = extended(Tensor(given), Tensor(given), Tensor(_causal()))
        for output, prefix in zip(outputs, expected, strict=True):
            assert output.asnumpy().dtype == dtype
            assert output.ndim == given.ndim
            whole = output.asnumpy() if given.ndim == 4 else _unflatten(output.asnumpy(), 2)
            np.testing.assert_allclose(whole[:, :, :TOKENS], prefix, rtol=tolerance, atol=tolerance)
            assert np.array_equal(whole[:, :, TOKENS:], states)


def test_one_prefix_serves_a_batch_of_any_size(mode):
    extended = Extended(_layer())
    for batch in (1, 3):
        states = _states(batch)
        key, _, _ = extended(Tensor(states), Tensor(states), Tensor(_causal(batch)))
        assert key.shape == (batch, HEADS, TOKENS + LENGTH, CHANNELS)
        assert (key.asnumpy()[:, :, :TOKENS] == key.asnumpy()[:1, :, :TOKENS]).all()


def test_a_mask_beside_keys_of_three_axes_is_not_broadcast(mode):
    states = Tensor(_flatten(_states()).reshape(2, LENGTH, HIDDEN))
    for prefix in (_layer(), _encoder()):
        mask = Extended(prefix)(states, states, Tensor(_causal()))[2].asnumpy()
        assert mask.shape == (2, 1, LENGTH, TOKENS + LENGTH)
        assert np.array_equal(mask[..., TOKENS:], _causal())
        assert (mask[..., :TOKENS] == 1).all()


def test_no_mask_stays_no_mask(mode):
    states = Tensor(_states())
    for prefix, more in ((_layer(), ()), (encoder := _encoder(), encoder(2, mstype.float32)[:1])):
        key, value, mask = prefix.extend(*more, states, states, None)
        assert mask is None
        assert key.shape == value.shape == (2, HEADS, TOKENS + LENGTH, CHANNELS)


def test_the_encoder_extends_flat_rows_as_it_extends_heads(mode):
    encoder = _encoder()
    own = encoder(2, mstype.float32)[1]
    states, mask = _states(), Tensor(_causal())
    key, value, _ = encoder.extend(own, Tensor(states), Tensor(states), mask)
    for flat in (_flatten(states), _flatten(states).reshape(2, LENGTH, HIDDEN)):
        flat_key, flat_value, _ = encoder.extend(own, Tensor(flat), Tensor(flat), mask)
        assert flat_key.ndim == flat.ndim
        assert np.array_equal(_unflatten(flat_key.asnumpy(), 2), key.asnumpy())
        assert np.array_equal(_unflatten(flat_value.asnumpy(), 2), value.asnumpy())
    assert np.array_equal(key.asnumpy()[:, :, :TOKENS], own.asnumpy()[0])
    assert np.array_equal(value.asnumpy()[:, :, :TOKENS], own.asnumpy()[1])


_PADDED = np.array([[1, 1, 0], [1, 1, 1]])
_MASKS = {
    "rows": _PADDED,
    "broadcast": _PADDED[:, None, None],
    "causal": _causal() * _PADDED[:, None, None],
    "without_heads": _causal()[:, 0],
    "every_head": np.repeat(_causal(), HEADS, 1),
}
# name: (options, the mask from 1 = visible, what every position sees of the prefix)
_FORMS = {
    "float": ({}, lambda mask: mask.astype(np.float32), 1),
    "half": ({}, lambda mask: mask.astype(np.float16), 1),
    "int": ({}, lambda mask: mask.astype(np.int32), 1),
    "bool": ({}, lambda mask: mask.astype(bool), True),
    "additive": ({"additive": True}, lambda mask: ((1 - mask) * -10000).astype(np.float32), 0),
    "hidden": ({"hidden_is_true": True}, lambda mask: mask == 0, False),
}


@pytest.mark.parametrize("of_encoder", [False, True], ids=["layer", "encoder"])
@pytest.mark.parametrize("form", _FORMS.values(), ids=_FORMS)
def test_a_mask_stays_what_it_was_and_shows_the_prefix(form, of_encoder):
    options, make, visible = form
    extended = Extended(_encoder() if of_encoder else _layer(), **options)
    states = Tensor(_states())
    for mask in map(make, _MASKS.values()):
        output = extended(states, states, Tensor(mask))[2].asnumpy()
        assert output.dtype == mask.dtype
        assert output.shape[-1] == TOKENS + LENGTH
        assert (output[..., :TOKENS] == visible).all()
        heads = HEADS if mask.ndim == 4 and not of_encoder else None
        expected = mask if heads is None else np.broadcast_to(mask, (2, heads, *mask.shape[2:]))
        assert np.array_equal(output[..., TOKENS:], expected)


@pytest.mark.parametrize("form", ["float", "bool", "additive", "hidden"])
def test_a_mask_is_the_same_in_both_modes(mode, form):
    options, make, visible = _FORMS[form]
    mask = make(_MASKS["causal"])
    output = Extended(_layer(), **options)(Tensor(_states()), Tensor(_states()), Tensor(mask))[2].asnumpy()
    assert output.shape == (2, HEADS, LENGTH, TOKENS + LENGTH)
    assert (output[..., :TOKENS] == visible).all()
    assert np.array_equal(output[..., TOKENS:], np.repeat(mask, HEADS, 1))


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_causal_masks_stay_causal_for_every_head(prefix):
    attention = Attention(prefix())
    query, mask = Tensor(_states()), Tensor(_causal())
    states, later = _states(), _states()
    later[:, :, -1] += 1
    before, after = (attention(query, Tensor(keys), Tensor(keys), mask).asnumpy() for keys in (states, later))
    assert np.array_equal(before[:, :, :-1], after[:, :, :-1])
    assert (before[:, :, -1] != after[:, :, -1]).any()


def test_the_way_of_the_specification_still_runs():
    """Rows of the prefix in front of flattened keys: read at construction, so without gradient."""
    layer = _layer()
    rows = Tensor(_flatten(_states(1)))
    assert ops.concat((layer.past_key_reparam, rows), 0).shape == (TOKENS + LENGTH, HIDDEN)


def test_dropout_thins_the_prefix_in_training_only():
    layer, encoder = _layer(dropout=0.5), _encoder(False, 0.5)
    assert np.array_equal(layer()[0].asnumpy(), layer()[0].asnumpy())
    layer.set_train()
    encoder.set_train()
    assert (layer()[0].asnumpy() == 0).any()
    prefix = encoder(8, mstype.float32)[0].asnumpy()
    assert 0.3 < (prefix == 0).mean() < 0.7
    assert (prefix[:, 0] != prefix[:, 1]).any()


def _refusals():
    states, mask = Tensor(_states()), Tensor(_causal())
    odd = Tensor(np.ones((2, LENGTH, 1, HEADS, CHANNELS), np.float32))
    encoder = _encoder()
    of_three = encoder(3, mstype.float32)[0]
    three = Tensor(_states(3))
    return {
        "another batch": (lambda: _layer(2).extend(three, three, Tensor(_causal(3))), "3 examples"),
        "another flat batch": (
            lambda: _layer(2).extend(*[Tensor(_flatten(_states(3)))] * 2, Tensor(_causal(3))),
            "3 examples",
        ),
        "five axes": (lambda: _layer().extend(odd, odd, mask), "shape"),
        "rows that do not divide": (lambda: _layer().extend(*[Tensor(random_input((7, HIDDEN)))] * 2, mask), "shape"),
        "flat rows without a mask": (lambda: _layer().extend(*[Tensor(_flatten(_states()))] * 2, None), "no mask"),
        "both flags": (lambda: _layer().extend(states, states, mask, additive=True, hidden_is_true=True), "Both"),
        "the encoder's batch": (lambda: encoder.extend(of_three, states, states, mask), "2 examples"),
        "the encoder's flat batch": (
            lambda: encoder.extend(of_three, *[Tensor(_flatten(_states()))] * 2, mask),
            "2 examples",
        ),
    }


@pytest.mark.parametrize("name", _refusals())
def test_what_does_not_fit_is_refused(name):
    call, named = _refusals()[name]
    with pytest.raises(ValueError, match=named):
        call()


def test_another_batch_is_refused_in_both_modes(mode):
    with pytest.raises(ValueError, match="3 examples"):
        Extended(_layer(2))(*[Tensor(_states(3))] * 2, Tensor(_causal(3)))
