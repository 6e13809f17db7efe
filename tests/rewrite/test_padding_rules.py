"""More rules of padding: indices, resizing, borders, and what works along a few dimensions, with
NaN wherever nothing counts.
"""

from __future__ import annotations

import re

import pytest

from qcompiler.errors import Error
from tests.rewrite.test_padding import IMAGE, Ranges, check, model_of, opened

EDGES: Ranges = {"n": (2, 6), "e": (1, 5), "h": (5, 7)}
SMALL: Ranges = {"h": (4, 9), "w": (5, 8)}
SCALED: Ranges = {"h": (2, 5), "a": (1, 9)}
SEQ: Ranges = {"s": (3, 9)}

COUNT = "sh = Shape(x) zero = Constant<value_ints=[0]>() count = Gather(sh, zero)"
INDICES = {
    "sums by index": f"""(float[n,4] x, int64[e] to, float[e,4] m) => (float[n,4] y, float[n,4] z)
        {{ {COUNT} i = Mod(to, count) one = Constant<value_ints=[1]>() j = Unsqueeze(i, one)
        ms = Shape(m) k = Expand(j, ms) y = ScatterElements<axis=0, reduction="add">(x, k, m)
        back = Sub(k, count) z = ScatterElements<axis=0, reduction="max">(x, back, m) }}""",
    "a few elements by index": f"""(float[n,4] x, int64[1,4] to, float[1,4] m) => (float[n,4] y)
        {{ {COUNT} i = Mod(to, count) j = Sub(i, count) y = ScatterElements<axis=0>(x, j, m) }}""",
    "along a closed axis": """(float[n,4] x, int64[n,2] to, float[n,2] m) => (float[n,4] y) {
        four = Constant<value_ints=[4]>() i = Mod(to, four) j = Sub(i, four)
        y = ScatterElements<axis=1, reduction="add">(x, j, m) }""",
    "rows by index": f"""(float[n,4] x, int64[e] to, float[e,4] m) => (float[n,4] y, float[e,4] g)
        {{ {COUNT} i = Mod(to, count) one = Constant<value_ints=[1]>() j = Unsqueeze(i, one)
        k = Sub(j, count) y = ScatterND<reduction="add">(x, k, m) g = GatherND(x, k) }}""",
    "elements by two indices": f"""(float[n,n] x, int64[e,2] to, float[e] m) => (float[n,n] y,
        float[e] g) {{ {COUNT} i = Mod(to, count) k = Sub(i, count)
        y = ScatterND<reduction="add">(x, k, m) g = GatherND(x, k) }}""",
    "rows of each sample": """(float[e,n,4] x, int64[e,2,1] to) => (float[e,2,4] g) {
        sh = Shape(x) one = Constant<value_ints=[1]>() count = Gather(sh, one) i = Mod(to, count)
        g = GatherND<batch_dims=1>(x, i) }""",
    "a depth that is open": f"""(float[n,2] x, int64[e] i) => (float[e,n] y, float[n,e] z) {{
        {COUNT} v = Constant<value_floats=[-1.0,2.0]>() k = Mod(i, count) j = Sub(k, count)
        y = OneHot(j, count, v) z = OneHot<axis=0>(k, count, v) }}""",
    "as many as": """(float[2,n] x, float[e] z) => (float[2,m] y, float[2,o] t, int64[k] r) {
        sh = Shape(z) rows = Constant<value_ints=[1]>() times = Concat<axis=0>(rows, sh)
        y = Tile(x, times) sx = Shape(x) one = Constant<value_ints=[1]>() n = Gather(sx, one)
        less = Sub(n, one) t, places = TopK(x, less) ten = Constant<value_ints=[10]>()
        end = Add(ten, n) two = Constant<value_ints=[2]>() s0 = Squeeze(less) s1 = Squeeze(end)
        s2 = Squeeze(two) r = Range(s0, s1, s2) }""",
    "backwards": """(float[n,e] x) => (float[n,e] y, float[m,e] z) {
        last = Constant<value_ints=[-1]>() far = Constant<value_ints=[-9223372036854775807]>()
        zero = Constant<value_ints=[0]>() two = Constant<value_ints=[-2]>()
        y = Slice(x, last, far, zero, last) z = Slice(x, last, far, zero, two) }""",
    "sequences of their own lengths": """(float[n,e,2] x, int64[e] l) => (float[n,e,2] y) {
        sh = Shape(x) zero = Constant<value_ints=[0]>() n = Gather(sh, zero) k = Mod(l, n)
        one = Constant<value_ints=[1]>() m = Add(k, one) y = ReverseSequence(x, m) }""",
    "sequences that are said to be longer": """(float[n,e,2] x, int64[e] l) => (float[n,e,2] y) {
        sh = Shape(x) zero = Constant<value_ints=[0]>() n = Gather(sh, zero) k = Mod(l, n)
        many = Constant<value_ints=[100]>() m = Add(k, many) y = ReverseSequence(x, m) }""",
    "a cache of rows as many as in a run": """(float[2,h,3] x, float[2,e,3] u, int64[2] i) =>
        (float[2,h,3] y, float[2,h,3] z, float[2,h,3] t) {
        sx = Shape(x) su = Shape(u) one = Constant<value_ints=[1]>() h = Gather(sx, one)
        e = Gather(su, one) spare = Sub(h, e) some = Add(spare, one) k = Mod(i, some)
        y = TensorScatter(x, u, k) z = TensorScatter(x, u) j = Mod(i, h)
        t = TensorScatter<mode="circular">(x, u, j) }""",
    "a cache": """(float[e,2,n,3] x, float[e,2,1,3] u, int64[e] i) => (float[e,2,n,3] y) {
        sh = Shape(x) two = Constant<value_ints=[2]>() n = Gather(sh, two) k = Mod(i, n)
        y = TensorScatter(x, u, k) }""",
}


MODES = {
    "nearest, down": 'mode="nearest", nearest_mode="floor"',
    "nearest, up": 'mode="nearest", nearest_mode="ceil"',
    "nearest, half down": 'mode="nearest", nearest_mode="round_prefer_floor"',
    "nearest, half up": 'mode="nearest", nearest_mode="round_prefer_ceil"',
    "linear": 'mode="linear"',
    "cubic": 'mode="cubic"',
    "cubic inside": 'mode="cubic", exclude_outside=1',
}
COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_images_are_resized_to_any_size(mode: str, coordinates: str) -> None:
    attrs = f'{MODES[mode]}, coordinate_transformation_mode="{coordinates}"'
    check(
        f"""g (float[1,2,h,3] x, float[a] z) => (float[1,2,a,7] y, float[1,2,a,h] u) {{
        front = Constant<value_ints=[1,2]>() seven = Constant<value_ints=[7]>() sz = Shape(z)
        sizes = Concat<axis=0>(front, sz, seven) y = Resize<{attrs}>(x, , , sizes)
        sh = Shape(x) two = Constant<value_ints=[2]>() h = Gather(sh, two)
        both = Concat<axis=0>(sz, h) u = Resize<{attrs}, axes=[2,3]>(x, , , both) }}""",
        SCALED,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("scale", ["2.0", "3.0", "0.5", "1.5"])
def test_images_are_resized_by_any_number(mode: str, coordinates: str, scale: str) -> None:
    attrs = f'{MODES[mode]}, coordinate_transformation_mode="{coordinates}"'
    text = f"""g (float[1,2,h,3] x) => (float[1,2,m,4] y) {{
        by = Constant<value_floats=[{scale},1.6]>() y = Resize<{attrs}, axes=[2,3]>(x, , by) }}"""
    rounded = scale in ("0.5", "1.5")
    if rounded and (coordinates == "align_corners" or "exclude" in attrs):
        with pytest.raises(Error, match="come out even"):
            opened(model_of(text), {"h": (3, 8)})
    else:
        check(text, {"h": (3, 8)})


GRIDS = {
    "places": """(float[1,2,4,5] x, float[1,h,w,2] g) => (float[1,2,h,w] y) {
        y = GridSample(x, g) }""",
    "an open image": """(float[2,2,h,w] x, float[2,3,3,2] g) => (float[2,2,3,3] a, float[2,2,3,3] b,
        float[2,2,3,3] c, float[2,2,3,3] d) {
        a = GridSample(x, g) b = GridSample<padding_mode="border">(x, g)
        c = GridSample<align_corners=1>(x, g) d = GridSample<mode="cubic">(x, g) }""",
    **{
        f"an open image, {mode}, {border}, {corners}": f"""(float[2,2,h,w] x, float[2,9,9,2] g) =>
            (float[2,2,9,9] y) {{ two = Constant<value_float=2.0>() wide = Mul(g, two)
            y = GridSample<mode="{mode}", padding_mode="{border}", align_corners={corners}>(x, wide)
            }}"""
        for mode, border in [
            ("nearest", "zeros"),
            ("nearest", "border"),
            ("nearest", "reflection"),
            ("linear", "reflection"),
        ]
        for corners in (0, 1)
    },
    "places of few bits": """(float16[1,1,h,w] x, float16[1,9,9,2] g) => (float16[1,1,9,9] y,
        float16[1,1,9,9] z) { y = GridSample(x, g) z = GridSample<mode="nearest">(x, g) }""",
    "an open volume": """(float[1,2,h,3,w] x, float[1,2,3,4,3] g) => (float[1,2,2,3,4] y) {
        y = GridSample<mode="nearest">(x, g) }""",
    "regions of an open image": """(float[2,2,h,w] x, float[5,4] r, int64[5] i) =>
        (float[5,2,2,3] y, float[5,2,2,3] z) { two = Constant<value_ints=[2]>() k = Mod(i, two)
        four = Constant<value_float=4.0>() r0 = Mul(r, four) a = Abs(r0)
        y = RoiAlign<output_height=2, output_width=3>(x, a, k)
        z = RoiAlign<output_height=2, output_width=3, mode="max", sampling_ratio=2,
        coordinate_transformation_mode="output_half_pixel">(x, a, k) }""",
    "an affine map": """(float[2,2,3] t, float[2,3,h,w] x) => (float[2,3,h,w] y, float[2,h,w,2] z) {
        s = Shape(x) g = AffineGrid(t, s) y = GridSample(x, g) z = AffineGrid<align_corners=1>(t, s)
        }""",
    "deformed windows": """(float[2,4,h,w] x, float[2,16,h,w] o, float[2,8,h,w] m) =>
        (float[2,2,h,w] y) <float[2,2,2,2] k = {@16}, float[2] b = {@2}> {
        y = DeformConv<pads=[0,1,1,0], group=2, offset_group=2>(x, k, o, b, m) }""",
}


BORDERS = {
    "SAME": """(float[1,2,h,w] x) => (float[1,2,m,n] a, float[1,2,m,n] b, float[1,2,o,n] c,
        float[1,2,m,n] d, float[1,2,m,n] e, float[1,2,q,r] f) <float[2,2,3,3] k = {@36},
        float[2,2,3,1] l = {@12}, float[2,2,1,1] i = {@4}> {
        a = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, k)
        b = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, k)
        c = Conv<auto_pad="SAME_UPPER", strides=[3,2]>(x, l)
        d = MaxPool<auto_pad="SAME_LOWER", kernel_shape=[3,3], strides=[2,2]>(x)
        e = AveragePool<auto_pad="SAME_UPPER", kernel_shape=[3,2], strides=[2,2]>(x)
        f = Conv<auto_pad="SAME_LOWER", strides=[2,3]>(x, i) }""",
    "ceil": """(float[1,2,h,w] x) => (float[1,2,m,n] a, float[1,2,m,n] b) {
        a = MaxPool<ceil_mode=1, kernel_shape=[3,3], strides=[2,2]>(x)
        b = AveragePool<ceil_mode=1, kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }""",
    "ceil, where a window may begin behind the image": """(float[1,2,h,w] x) => (float[1,2,m,n] a,
        float[1,2,o,p] b, float[1,2,q,n] c, float[1,2,r,t] d, int64[1,2,r,t] e) {
        a = MaxPool<ceil_mode=1, kernel_shape=[1,2], strides=[2,3]>(x)
        b = AveragePool<ceil_mode=1, kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1],
        count_include_pad=1>(x)
        c = AveragePool<ceil_mode=1, kernel_shape=[2,2], strides=[2,3], dilations=[2,1]>(x)
        d, e = MaxPool<ceil_mode=1, kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1],
        storage_order=1>(x) }""",
    "averages of padding, by ceil": """(float[1,2,h,w] x) => (float[1,2,m,n] y) {
        y = AveragePool<ceil_mode=1, kernel_shape=[2,3], strides=[3,2], pads=[0,1,1,2],
        count_include_pad=1, dilations=[1,2]>(x) }""",
    "pooled and back": """(float[2,3,h,w] x) => (float[2,3,m,n] y) {
        u = Concat<axis=2>(x, x) v = Concat<axis=3>(u, u)
        a, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(v)
        y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(a, i) }""",
    "indices": """(float[2,3,h,w] x) => (float[2,3,m,n] a, int64[2,3,m,n] i) {
        a, i = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }""",
    "Pad": """(float[1,2,h,w] x) => (float[1,2,m,n] a, float[1,2,m,n] b, float[1,2,m,n] c,
        float[1,3,m,n] d, float[1,2,m,n] e) {
        p = Constant<value_ints=[0,0,3,1,0,0,2,3]>() a = Pad<mode="reflect">(x, p)
        b = Pad<mode="edge">(x, p) c = Pad<mode="wrap">(x, p)
        q = Constant<value_ints=[0,0,-2,1,0,1,1,-3]>() one = Constant<value_float=1.5>()
        d = Pad(x, q, one) r = Constant<value_ints=[2,-1]>() ax = Constant<value_ints=[2]>()
        e = Pad<mode="edge">(x, r, , ax) }""",
    "up to a multiple": """(float[1,2,h,w] x) => (float[1,2,m,w] a, float[1,2,h,n] b) {
        sh = Shape(x) two = Constant<value_ints=[2]>() three = Constant<value_ints=[3]>()
        h = Gather(sh, two) w = Gather(sh, three) four = Constant<value_ints=[4]>()
        zeros = Constant<value_ints=[0,0,0]>() zero = Constant<value_ints=[0]>()
        h0 = Mod(h, four) h1 = Sub(four, h0) h2 = Mod(h1, four)
        p = Concat<axis=0>(zeros, zeros, h2, zero) a = Pad(x, p)
        q = Concat<axis=0>(zeros, h2, zeros, w) b = Pad<mode="wrap">(x, q) }""",
    "in equal parts": """(float[1,2,h,w] x) => (float[1,1,h,w] y, float[1,2,m,w] z) {
        p, q = Split<axis=1, num_outputs=2>(x) y = Sub(p, q) t = Concat<axis=2>(x, x)
        u, v = Split<axis=2, num_outputs=2>(t) z = Sub(u, v) }""",
}


OTHERS = {
    "norms": """(float[2,s,3] x) => (float[2,s,3] a, float[2,s,3] b, float[2,s,3] c, float[2,s,3] d,
        float[2,s,1] e, float[2,s,1] f) <float[3] g = {1,2,3}> {
        a = LpNormalization<axis=1>(x) b = LpNormalization<axis=1, p=1>(x)
        c = MeanVarianceNormalization<axes=[0,1]>(x)
        d, e, f = LayerNormalization<axis=2>(x, g) }""",
    "pool": "(float[1,2,s,3] x) => (float[1,2,1,1] y) { y = GlobalLpPool<p=3>(x) }",
    "bytes": """(float[2,s] x) => (uint8[2,s] y, float sc, uint8 z) {
        y, sc, z = DynamicQuantizeLinear(x) }""",
    "bits": """(float[2,s] x) => (float16[2,s] y, int32[2,s] z) <float16[1] h = {1}> {
        y = CastLike(x, h) z = BitCast<to=6>(x) }""",
    "matrices": """(float[s,3,3] x, float[s,4] y) => (float[s] d, float[s,4] e, float[s,4,2] f,
        bool[s,4] m, float[s,4] n) {
        d = Det(x) e = EyeLike<k=1>(y) last = Constant<value_ints=[2]>() u = Unsqueeze(y, last)
        one = Constant<value_int=1>() f = DFT(u, , one) n, m = Dropout(y) }""",
    "rotated": """(float[2,2,s,4] x, float[2,s,2] c, int64[2,s] p) => (float[2,2,s,4] y,
        float[2,2,s,4] z) <float[7,2] table = {@14}> {
        y = RotaryEmbedding(x, c, c) z = RotaryEmbedding(x, table, table, p) }""",
    "regions": """(float[2,2,6,6] x, float[s,4] r, int64[s] i) => (float[s,2,2,2] y) {
        one = Constant<value_ints=[2]>() k = Mod(i, one) ten = Constant<value_float=3.0>()
        r0 = Mul(r, ten) a = Abs(r0) y = RoiAlign<output_height=2, output_width=2,
        sampling_ratio=2>(x, a, k) }""",
    "spectra": """(float[2,s,3,2] x, float[2,s,1] r) => (float[2,s,3,2] a, float[2,s,3,2] b,
        float[2,m,2] c, float[2,n,3,1] d, float[2,5,3,2] e, float[2,5,3,1] f, float[2,s,2] g,
        float[2,3,2] h, float[2,n,1] i) {
        one = Constant<value_int=1>() five = Constant<value_int=5>() a = DFT(x, , one)
        b = DFT<inverse=1>(x, , one) c = DFT<onesided=1>(r, , one)
        d = DFT<onesided=1, inverse=1>(x, , one) e = DFT(x, five, one)
        f = DFT<onesided=1, inverse=1>(x, five, one) g = DFT(r) h = DFT<onesided=1>(r, five, one)
        i = DFT<onesided=1, inverse=1>(r) }""",
    "frames": """(float[1,s,1] x) => (float[1,m,2,2] y) {
        hop = Constant<value_int=2>() n = Constant<value_int=3>() y = STFT(x, hop, , n) }""",
}


PAIRS = {
    "norms of each sample": """(float[n,4,e] x) => (float[n,4,e] y, float[n,4,e] z)
        <float[4] g = {1,2,3,4}, float[4] b = {4,3,2,1}> {
        y = InstanceNormalization(x, g, b) z = GroupNormalization<num_groups=2>(x, g, b) }""",
    "norms of any channels": """(float[2,n,e] x, float[n] g, float[n] b) => (float[2,n,e] y,
        float[2,m,e] z) { y = InstanceNormalization(x, g, b) u = Concat<axis=1>(x, y)
        h = Concat<axis=0>(g, b) z = GroupNormalization<num_groups=2>(u, h, h) }""",
    "n-grams": """(int64[n,e] x, int64[e] v) => (float[n,5] y, float[5] z) {
        y = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=2,
        ngram_counts=[0,3], ngram_indexes=[4,0,2,3,1], pool_int64s=[1,2,3,1,2,3,3]>(x)
        z = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=2,
        ngram_counts=[0,3], ngram_indexes=[4,0,2,3,1], pool_int64s=[1,2,3,1,2,3,3]>(v) }""",
    "pieces of one": """(float[n,e,3] x) => (float[n,3] y, float[1,e,3] z, int64 l) {
        last = Constant<value_int=-1>() first = Constant<value_int=0>()
        p = SplitToSequence<axis=1, keepdims=0>(x) y = SequenceAt(p, last)
        q = SplitToSequence<axis=0>(x) z = SequenceAt(q, first) l = SequenceLength(q) }""",
    "LSTM": """(float[e,n,3] x, float[1,n,4] h0) => (float[e,1,n,4] y, float[1,n,4] h,
        float[1,n,4] c) <float[1,16,3] w = {@48}, float[1,16,4] r = {@64}, float[1,32] b = {@32}> {
        y, h, c = LSTM<hidden_size=4>(x, w, r, b, , h0, h0) }""",
    "GRU, both ways": """(float[e,n,3] x) => (float[e,2,n,4] y, float[2,n,4] h)
        <float[2,12,3] w = {@72}, float[2,12,4] r = {@96}> {
        y, h = GRU<hidden_size=4, direction="bidirectional">(x, w, r) }""",
    "the batch first": """(float[n,e,3] x) => (float[n,e,1,4] y, float[n,1,4] h)
        <float[1,4,3] w = {@12}, float[1,4,4] r = {@16}> {
        y, h = RNN<hidden_size=4, layout=1>(x, w, r) }""",
    "drawn numbers": """(float[2,n,e] x) => (float[2,n,e] y, bool[2,n,e] m, float[2,n,e] z) {
        r = Constant<value_float=0.4>() t = Constant<value_int=1>() u = Cast<to=9>(t)
        y, m = Dropout<seed=3>(x, r, u) z = RandomNormalLike<seed=2.0>(x) }""",
    "channels": """(float[2,n,5] x, float[3,n,3] w, float[n,2,2] v, float[e,n,2] u, float[e] b) =>
        (float[2,3,5] y, float[2,2,6] z, float[2,e,4] o, float[2,n,3] p, float[2,n,3] q,
        int64[2,n,3] i) {
        y = Conv<pads=[1,1]>(x, w) z = ConvTranspose(x, v) o = Conv(x, u, b)
        p = AveragePool<kernel_shape=[3]>(x) q, i = MaxPool<kernel_shape=[3]>(x) }""",
    "norms along it": """(float[2,n,e] x, float[n,e] g, float[n,e] b, float[e] s) =>
        (float[2,n,e] y, float[2,1,1] m, float[2,1,1] v, float[2,n,e] z, float[2,n,e] w) {
        y, m, v = LayerNormalization<axis=1>(x, g, b) z = RMSNormalization(x, s)
        w = LayerNormalization(x, s) }""",
    "the last of equals": """(float[n,e] x) => (int64[1,e] y, int64[n] z, int64[1,e] f) {
        one = Constant<value_float=0.0>() l = Less(x, one) k = Cast<to=1>(l)
        y = ArgMax<axis=0, select_last_index=1>(k)
        z = ArgMin<axis=1, keepdims=0, select_last_index=1>(k) inf = Log(k)
        f = ArgMax<axis=0, select_last_index=1>(inf) }""",
    "integers": """(uint8[n,e] x, uint8[e,3] w, uint8[3,n] v) => (int32[n,3] y, int32[n,n] z,
        uint8[n,3] q) <uint8 a = {3}, uint8 b = {2}, float s = {0.5}> {
        y = MatMulInteger(x, w, a, b) u = Cast<to=2>(y) z = MatMulInteger(u, v)
        q = QLinearMatMul(x, s, a, w, s, b, s, a) }""",
    "attention of any heads": """(float[1,n,3,e] q, float[1,n,4,e] k, float[1,n,4,2] v) =>
        (float[1,n,3,2] y, float[1,n,3,2] z) { y = Attention(q, k, v)
        z = Attention<scale=0.3>(q, k, v) }""",
    "numbers for each channel": """(float[2,n,e] x, float[n] g, float[n] b, uint8[n] z) =>
        (float[2,n,e] y, uint8[2,n,e] q, float[2,n,e] d) {
        v = Mul(b, b) y = BatchNormalization(x, g, b, b, v) s = Exp(g)
        q = QuantizeLinear<axis=1>(x, s, z) d = DequantizeLinear<axis=1>(q, s, z) }""",
    "the middle, and 0 around it": """(float[n,e,3] x, float[e,n] z) => (float[e,4,3] y,
        float[n,n,2] u, bool[n,n,2] v) { sz = Shape(z) zero = Constant<value_ints=[0]>()
        one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>()
        four = Constant<value_ints=[4]>() e = Gather(sz, zero) n = Gather(sz, one)
        s = Concat<axis=0>(e, four) y = CenterCropPad<axes=[0,-2]>(x, s)
        t = Concat<axis=0>(n, n, two) u = CenterCropPad(x, t) b = Cast<to=9>(x)
        v = CenterCropPad(b, t) }""",
    "blocks of channels": """(float[1,n,e,3] x) => (float[1,n,p,6] y, float[1,n,p,6] z,
        float[1,q,e,3] u, float[1,q,e,3] v) { c = Concat<axis=1>(x, x, x, x)
        y = DepthToSpace<blocksize=2>(c) z = DepthToSpace<blocksize=2, mode="CRD">(c)
        u = SpaceToDepth<blocksize=2>(y) v = SpaceToDepth<blocksize=2>(z) }""",
    "norms of neighbouring channels": """(float[2,n,e] x) => (float[2,n,e] y, float[2,n,e] z) {
        y = LRN<size=3, alpha=0.5>(x) z = LRN<size=4, alpha=0.5>(x) }""",
    "determinants": "(float[e,n,n] x) => (float[e] y) { y = Det(x) }",
    "diagonals, and what dots stand for": """(float[e,n,n] x, float[n] v, float[n,3] w) =>
        (float[e,n] y, float[] z, float[e,n,3] t, float[e] u, float[e,n,n] k) {
        y = Einsum<equation="...ii->...i">(x) z = Einsum<equation="i,i">(v, v)
        t = Einsum<equation="...ij,jk->...ik">(x, w) u = Einsum<equation="...ii->...">(x)
        k = Einsum<equation="... j i,...ij">(x, x) }""",
    "numbers for each block": """(float[n,e] x) => (uint8[m,e] q, float[m,e] d, int8[n,e] r,
        uint8[n,e] w) { two = Concat<axis=0>(x, x) s = Exp(x) h = Abs(x) z = Cast<to=2>(h)
        q = QuantizeLinear<axis=0, block_size=2>(two, s, z)
        d = DequantizeLinear<axis=0, block_size=2>(q, s, z) m = ReduceMax<keepdims=1>(s)
        o = Constant<value_ints=[-1]>() p = ReduceMax(s, o) k = Constant<value_float=0.5>()
        l = Mul(p, k) i = Constant<value_int=0>() c = Cast<to=3>(i) g = CastLike(p, c)
        r = QuantizeLinear<axis=1, block_size=8>(x, l, g) w = QuantizeLinear<block_size=2>(x, k)
        }""",
    "a first piece": """(float[n,e,3] x) => (float[n,1,3] y, float[2,e,3] z) {
        zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
        two = Constant<value_ints=[2]>() y = Slice(x, zero, one, one) z = Slice(x, zero, two, zero)
        }""",
}


RESIZED = {
    "resized": """(float[1,2,h,3] x, float[a] z) => (float[1,2,a,7] y, float[1,2,a,7] u,
        float[1,2,a,7] v) {
        front = Constant<value_ints=[1,2]>() seven = Constant<value_ints=[7]>() sz = Shape(z)
        sizes = Concat<axis=0>(front, sz, seven) y = Resize<mode="linear">(x, , , sizes)
        u = Resize<mode="cubic", coordinate_transformation_mode="align_corners">(x, , , sizes)
        v = Resize<mode="nearest", nearest_mode="ceil">(x, , , sizes) }""",
}


def edges(text: str) -> Ranges:
    """The sizes among EDGES that a model has."""
    return {k: v for k, v in EDGES.items() if re.search(rf"[\[,]{k}[,\]]", text)}


MORE: dict[str, tuple[str, Ranges, int]] = {
    **{k: (v, edges(v), 24) for k, v in (INDICES | PAIRS).items()},
    **{k: (v, SMALL, 23) for k, v in (GRIDS | BORDERS).items()},
    **{k: (v, SEQ, 26) for k, v in OTHERS.items()},
    **{k: (v, SCALED, 23) for k, v in RESIZED.items()},
}
"""Models, their sizes, and opsets."""


@pytest.mark.parametrize("name", MORE)
def test_operators_take_any_sizes(name: str) -> None:
    text, ranges, opset = MORE[name]
    check(f"g {text}", ranges, opset)


def test_convolutions_one_after_the_other_meet_one_of_their_stride() -> None:
    text = """g (float[1,2,h,w] x) => (float[1,2,m,n] y) <float[2,2,1,1] k = {@4}> {
        a = Conv<strides=[2,2]>(x, k) b = Conv<strides=[2,2]>(a, k)
        c = Conv<strides=[4,4]>(x, k) y = Add(b, c) }"""
    check(text, IMAGE)
