"""Property values between the SDK and handlers, there and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pulumi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pulumi.runtime import rpc

from dpac_api.models import Phase
from dpac_api.quantities import Duration
from dpac_provider.codec import EXACT_INTEGER_MAX, decode, encode
from dpac_provider.values import UNKNOWN, has_unknown

texts = st.text(max_size=8).filter(lambda text: text != rpc.UNKNOWN)
keys = st.text(min_size=1, max_size=8).filter(lambda key: not key.startswith("__") and key != rpc._special_sig_key)
numbers = st.integers(-EXACT_INTEGER_MAX, EXACT_INTEGER_MAX) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.just(UNKNOWN) | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
properties = st.dictionaries(keys, values, max_size=5)


def _through_pulumi(held: dict[str, Any]) -> dict[str, Any]:
    """What the SDK makes of properties on their way out and in again."""
    wire = asyncio.run(rpc.serialize_properties(held, {}))
    out: dict[str, Any] = rpc.deserialize_properties(wire, True)
    return out


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


@given(properties)
def test_every_value_comes_back_through_the_sdk_as_it_went(held: dict[str, Any]) -> None:
    """Unknowns, booleans, integers that travel as floats, nested as they like."""
    assert _same(decode(_through_pulumi(encode(held))), held)


@given(properties, st.data())
def test_a_secret_anywhere_is_its_value(held: dict[str, Any], data: st.DataObject) -> None:
    """However the SDK wraps secrets, handlers see plain values."""

    def wrapped(value: Any) -> Any:
        if isinstance(value, dict):
            value = {key: wrapped(item) for key, item in value.items()}
        elif isinstance(value, list):
            value = [wrapped(item) for item in value]
        return rpc.wrap_rpc_secret(value) if data.draw(st.booleans()) else value

    encoded = encode(held)
    assert _same(decode({key: wrapped(value) for key, value in encoded.items()}), held)


@given(values)
def test_unknown_is_found_wherever_it_is(value: Any) -> None:
    """`has_unknown` agrees with the text of the encoded value."""
    assert has_unknown(value) == (rpc.UNKNOWN in repr(encode({"value": value})))


def test_both_spellings_of_unknown_are_understood() -> None:
    """The SDK's object and the engine's text."""
    assert decode({"a": pulumi.output.UNKNOWN, "b": [rpc.UNKNOWN]}) == {"a": UNKNOWN, "b": [UNKNOWN]}


def test_internal_keys_and_nulls_are_not_for_handlers() -> None:
    """`__provider` is never sent in a request; a null is as good as absent."""
    assert decode({"__provider": "gASV", "__defaults": [], "a": None, "b": {"c": None}}) == {"b": {}}
    assert encode({"a": None, "b": {"c": None}}) == {"b": {}}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_whole_float_is_an_integer_and_no_other(number: float) -> None:
    """30.0 is 30; 2.5 stays 2.5."""
    decoded = decode({"n": number})["n"]
    assert decoded == number
    assert isinstance(decoded, int) == (number.is_integer() and abs(number) <= EXACT_INTEGER_MAX)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**60), float("nan"), float("inf")])
def test_what_would_change_on_the_way_is_refused(value: float) -> None:
    """Rather an error than another number."""
    with pytest.raises(ValueError, match="Pulumi"):
        encode({"value": value})


def test_text_in_state_is_plain_text() -> None:
    """Durations and enumerations leave as str itself."""
    assert {type(value) for value in encode({"a": Duration("1m"), "b": Phase.RUNNING}).values()} == {str}


def test_an_asset_is_no_property_of_dpac() -> None:
    """A mistake is an error, not a guess."""
    with pytest.raises(TypeError, match="StringAsset"):
        decode({"a": pulumi.StringAsset("text")})
