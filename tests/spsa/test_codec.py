# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random

import numpy as np
import pytest

from lowtide.errors import LowtideValueError
from lowtide.spsa._codec import CODECS, ExponentRule, draw, get_codec

LOG8 = CODECS["log8"]


@pytest.mark.parametrize("exponent", [-128, -7, 0, 1, 127])
def test_every_byte_survives_a_round_trip_under_any_draw(exponent):
    for code in range(256):
        value = LOG8.decode(code, exponent)
        if code == 0:
            assert value is None
            continue
        for bits in (0, 1, 2**31, 2**32 - 1):
            assert LOG8.encode(value, exponent, bits) == code
        vector = LOG8.decode_array(np.array([code], np.uint32), exponent)
        assert vector[0] == value
        assert math.copysign(1, value) == (1 if code <= 128 else -1)


def test_levels_are_powers_of_an_eighth_octave():
    for m in range(1, 128):
        value = LOG8.decode(m, 0)
        assert value == pytest.approx(2 ** ((m - 64) / 8), rel=2**-24)  # the table is float32
        assert LOG8.decode(m, 5) == 32 * value
    assert LOG8.decode(128) == 0.0


def test_larger_magnitudes_never_get_smaller_codes():
    rng = random.Random(0)
    values = sorted(abs(rng.gauss(0, 1)) * 2.0 ** rng.uniform(-12, 12) for _ in range(3000))
    for bits in (0, 123456789, 2**32 - 1):
        codes = [LOG8.encode(v, 0, bits) & 127 for v in values]
        assert codes == sorted(codes)
        assert [LOG8.encode(-v, 0, bits) & 127 for v in values] == codes


@pytest.mark.parametrize("g", [0.001, 0.0043, 0.9, 1.0, 1.04, 1.06, 3.7, -200.0, 233.0])
def test_rounding_is_unbiased(g):
    draws = np.random.default_rng(1).integers(0, 2**32, 20000)
    values = np.array([LOG8.decode(LOG8.encode(g, 0, int(d)), 0) for d in draws])
    assert set(np.unique(values).tolist()) <= {values.min(), values.max()}  # two neighbours
    spread = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - g) <= 4 * spread + abs(g) * 1e-9  # z-score of 4


def test_extremes():
    assert LOG8.encode(1e300, 0, 0) == 127
    assert LOG8.encode(-1e300, 0, 0) == 255
    assert LOG8.encode(5e-324, 0, 2**32 - 1) == 128
    assert LOG8.encode(0.0) == LOG8.encode(-0.0) == 128
    for bad in (math.nan, math.inf, -math.inf):
        for codec in CODECS.values():
            assert codec.encode(bad) == codec.none
            assert codec.decode(codec.none) is None


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_ieee_codecs_are_exact(name, dtype):
    codec = get_codec(name)
    rng = np.random.default_rng(2)
    for x in [0.0, -0.0, 1.0, *rng.standard_normal(200).astype(dtype).tolist()]:
        assert codec.decode(codec.encode(x)) == x
        assert math.copysign(1, codec.decode(codec.encode(x))) == math.copysign(1, x)
    assert codec.decode(codec.encode(1e300)) == float(np.finfo(dtype).max)
    with pytest.raises(LowtideValueError, match="finite"):
        codec.decode(int(np.array(np.inf, dtype).view(f"u{codec.bits // 8}")))


def test_sign1_flips_a_coin_on_ties():
    codec = get_codec("sign1")
    assert (codec.encode(3.0), codec.encode(-0.1)) == (1, 2)
    assert {codec.encode(0.0, 0, d) for d in (0, 1)} == {1, 2}
    assert (codec.decode(1), codec.decode(2)) == (1.0, -1.0)
    with pytest.raises(LowtideValueError, match="code must be"):
        codec.decode(3)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 64])
def test_packed_codes_come_back(name, count):
    codec = CODECS[name]
    rng = random.Random(count)
    codes = [codec.encode(rng.gauss(0, 1), 0, rng.getrandbits(32)) for _ in range(count)]
    raw = codec.pack(codes)
    assert len(raw) == codec.size(count)
    assert codec.unpack(raw, count).tolist() == codes
    values = codec.decode_array(codec.unpack(raw, count))
    assert values.tolist() == [codec.decode(c) for c in codes]
    with pytest.raises(LowtideValueError, match="got"):
        codec.unpack(raw + b"\0", count)


def test_packed_codes_that_do_not_exist_are_refused():
    with pytest.raises(LowtideValueError, match="one of sign1"):
        CODECS["sign1"].unpack(b"\x03", 1)
    with pytest.raises(LowtideValueError, match="behind the last"):
        CODECS["sign1"].unpack(b"\x10", 1)
    with pytest.raises(LowtideValueError, match="one of f32"):
        CODECS["f32"].unpack(b"\x00\x00\x80\x7f", 1)


def test_unknown_codec_and_code_are_named():
    with pytest.raises(LowtideValueError, match="log8, sign1, f16, f32"):
        get_codec("int7")
    with pytest.raises(LowtideValueError, match="256"):
        LOG8.decode(256)


def test_draws_are_addressed_and_uniform():
    assert draw(1, 2, 3) == draw(1, 2, 3)
    values = {draw(1, step, slot) for step in range(20) for slot in range(20)}
    assert len(values) == 400
    assert abs(np.mean(list(values)) / 2**32 - 0.5) < 4 * math.sqrt(1 / 12 / 400)


class TestExponentRule:
    def run(self, values, rule, steps):
        for t in range(steps):
            code = LOG8.encode(values(t), rule.exponent, draw(0, t, 0))
            rule.update([code])
        return rule.exponent

    @pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 900.0])
    def test_finds_the_scale_of_the_derivatives(self, scale):
        rng = random.Random(3)
        rule = ExponentRule("log8")
        exponent = self.run(lambda t: scale * rng.gauss(0, 1), rule, 200)
        # the median of |gauss| is 0.67: half an octave below 1
        assert abs(exponent - math.log2(scale * 0.67)) <= 1

    def test_moves_by_one_at_most(self):
        rule = ExponentRule("log8")
        before = rule.exponent
        for t in range(100):
            rule.update([LOG8.encode(1e6 if t < 50 else 1e-6, rule.exponent, draw(0, t, 0))])
            assert abs(rule.exponent - before) <= 1
            before = rule.exponent

    def test_ties_do_not_pull_it_down(self):
        rng = random.Random(4)
        exponent = self.run(lambda t: 0.0 if rng.random() < 0.9 else 1.0, ExponentRule("log8"), 300)
        assert abs(exponent) <= 1

    def test_stays_in_a_byte(self):
        assert self.run(lambda t: 0.0, ExponentRule("log8"), 300) == -128
        rule = ExponentRule("log8", initial=127)
        for _ in range(10):
            rule.update([127])
        assert rule.exponent == 127

    def test_contributions_alone_count(self):
        rule = ExponentRule("log8", initial=3)
        rule.update([])
        rule.update([LOG8.none])
        assert rule.exponent == 3

    @pytest.mark.parametrize("name", ["sign1", "f16", "f32"])
    def test_other_codecs_have_none(self, name):
        rule = ExponentRule(name)
        rule.update([1, 1, 1])
        assert rule.exponent == 0

    def test_state_continues(self):
        rng = random.Random(5)
        a, b = ExponentRule("log8"), ExponentRule("log8")
        for t in range(100):
            if t == 37:
                b.load_state_dict(a.state_dict())
            codes = [rng.randrange(256) for _ in range(3)]
            a.update(codes)
            if t >= 37:
                b.update(codes)
                assert b.exponent == a.exponent

    @pytest.mark.parametrize(
        "state",
        [{}, {"exponent": 1}, {"exponent": 128, "levels": []}, {"exponent": 0, "levels": [0] * 65}],
    )
    def test_bad_states_change_nothing(self, state):
        rule = ExponentRule("log8", initial=2)
        with pytest.raises(LowtideValueError, match="state_dict"):
            rule.load_state_dict(state)
        assert rule.exponent == 2
