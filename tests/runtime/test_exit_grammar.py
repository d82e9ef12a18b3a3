"""The grammar of exit rules: every rule is read and written back, and every mistake is one line that says what is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ouro_edge import (
    Agreement,
    ConfidenceThreshold,
    DivergenceThreshold,
    EntropyChange,
    EntropyThreshold,
    ExitPolicy,
    ExitThreshold,
    ExpectedLogits,
    FixedDepth,
    FullDepth,
    LoopBudget,
    RequestError,
    StableChoice,
    StateChange,
    StateTurn,
    format_exit,
    parse_exit,
)
from ouro_edge.runtime.exits.parse import RULES, exit_from_options

SHARES = st.floats(0, 1)
NUMBERS = st.floats(0, allow_infinity=True)
DEPTHS = st.integers(1, 1000)


@st.composite
def bounds(draw):
    floor = draw(DEPTHS)
    return {"floor": floor, "ceiling": draw(st.none() | st.integers(floor, 1000))}


RULES_ALONE = st.one_of(
    st.builds(FixedDepth, DEPTHS),
    st.just(FullDepth()),
    st.just(ExpectedLogits()),
    st.builds(lambda q, b: ExitThreshold(q, **b), SHARES, bounds()),
    st.builds(lambda p, b: ConfidenceThreshold(p, **b), SHARES, bounds()),
    st.builds(lambda n, b: EntropyThreshold(n, **b), NUMBERS, bounds()),
    st.builds(lambda n, b: DivergenceThreshold(n, **b), NUMBERS, bounds()),
    st.builds(lambda s, b: StateChange(s, **b), NUMBERS, bounds()),
    st.builds(lambda n, b: EntropyChange(n, **b), NUMBERS, bounds()),
    st.builds(lambda d, b: StateTurn(d, **b), NUMBERS, bounds()),
    st.builds(lambda n, b: StableChoice(n, **b), DEPTHS, bounds()),
    st.builds(lambda b: Agreement(**b), bounds()),
)
POLICIES = RULES_ALONE | st.builds(LoopBudget, st.floats(1, 1000), RULES_ALONE)


@given(POLICIES)
def test_every_policy_is_written_and_read_back(policy: ExitPolicy):
    assert parse_exit(format_exit(policy)) == policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("gate:0.7", ExitThreshold(0.7)),
        ("gate:1", ExitThreshold(1.0)),
        ("gate:0.7,ceiling=3", ExitThreshold(0.7, ceiling=3)),
        ("gate:0.7,ceiling=3,floor=2", ExitThreshold(0.7, floor=2, ceiling=3)),
        (" gate:0.7 , floor=2 ", ExitThreshold(0.7, floor=2)),
        ("depth:3", FixedDepth(3)),
        ("full", FullDepth()),
        ("confidence:0.9", ConfidenceThreshold(0.9)),
        ("entropy:1.5", EntropyThreshold(1.5)),
        ("kl:0.001", DivergenceThreshold(0.001)),
        ("change:.05", StateChange(0.05)),
        ("agreement", Agreement()),
        ("entropy-change:0.001,ceiling=8", EntropyChange(0.001, ceiling=8)),
        ("turn:1e-3", StateTurn(0.001)),
        ("stable:5", StableChoice(5)),
        ("agreement,floor=3", Agreement(floor=3)),
        ("weighted", ExpectedLogits()),
        ("weighted,budget=2", LoopBudget(2.0, ExpectedLogits())),
        ("depth:4,budget=2.5", LoopBudget(2.5, FixedDepth(4))),
        ("gate:0.5,budget=2,floor=2", LoopBudget(2.0, ExitThreshold(0.5, floor=2))),
    ],
)
def test_spellings(text, policy):
    assert parse_exit(text) == policy


def test_the_shortest_spelling_is_written():
    assert format_exit(ExitThreshold(0.7)) == "gate:0.7"
    assert format_exit(FixedDepth(3)) == "depth:3"
    assert format_exit(LoopBudget(2.0, Agreement(floor=2, ceiling=4))) == "agreement,floor=2,ceiling=4,budget=2"


def test_every_rule_has_a_form_in_the_message():
    with pytest.raises(RequestError) as refused:
        parse_exit("luck:3")
    assert all(rule.form in str(refused.value) for rule in RULES.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the rule is missing"),
        (":0.7", "the rule is missing"),
        ("luck:3", "'luck' is not a rule"),
        ("Gate:0.7", "'Gate' is not a rule"),
        ("0.7", "'0.7' is not a rule"),
        ("gate", "gate takes a value"),
        ("depth", "depth takes a value"),
        ("gate:", "'' is not a number"),
        ("gate:high", "'high' is not a number"),
        ("depth:2.5", "'2.5' is not a number"),
        ("stable:2.5", "'2.5' is not a number"),
        ("stable", "stable takes a value"),
        ("full:1", "full takes no value"),
        ("agreement:1", "agreement takes no value"),
        ("gate:0.7,roof=3", "'roof=3' is not floor, ceiling or budget"),
        ("gate:0.7,", "'' is not floor, ceiling or budget"),
        ("gate:0.7,floor", "floor is ''"),
        ("gate:0.7,floor=two", "floor is 'two'"),
        ("gate:0.7,floor=2.5", "floor is '2.5'"),
        ("gate:0.7,budget=", "budget is ''"),
        ("gate:0.7,floor=1,floor=2", "floor is given twice"),
        ("depth:3,ceiling=2", "depth takes no ceiling"),
        ("weighted,floor=2", "weighted takes no floor"),
    ],
)
def test_mistakes_of_form_say_what_was_found_and_what_is_expected(text, found):
    with pytest.raises(RequestError) as refused:
        parse_exit(text, name="--exit")
    message = str(refused.value)
    assert message.startswith(f"--exit is {text!r}: {found}; expected gate:Q, ") and "\n" not in message
    assert "entropy:NATS" in message and ",budget=MEAN" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gate:2", "0 (one loop) to 1"),
        ("gate:nan", "0 (one loop) to 1"),
        ("confidence:-0.1", "0 to 1"),
        ("entropy:-1", "at least 0"),
        ("change:nan", "at least 0"),
        ("depth:0", "counted from 1"),
        ("gate:0.7,floor=0", "counted from 1"),
        ("gate:0.7,floor=3,ceiling=2", "ceiling 2 is below floor 3"),
        ("gate:0.7,budget=0.5", "loop"),
        ("gate:0.7,budget=nan", "loop"),
    ],
)
def test_values_out_of_range_are_the_policys_to_refuse(text, says):
    with pytest.raises(RequestError) as refused:
        parse_exit(text)
    message = str(refused.value)
    assert message.startswith("exit is '") and says in message and "\n" not in message


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        policy = parse_exit(text)
    except RequestError as problem:
        assert len(str(problem).splitlines()) == 1
    else:
        assert parse_exit(format_exit(policy)) == policy


@pytest.mark.parametrize("value", [None, 0.7, 3, ["gate:0.7"], b"gate:0.7"])
def test_what_is_not_text_is_refused(value):
    with pytest.raises(RequestError, match=r"exit is .*; expected text such as gate:0.7"):
        parse_exit(value)


def test_a_policy_of_ones_own_has_no_spelling():
    class Mine(FullDepth):
        pass

    with pytest.raises(RequestError, match="has no spelling"):
        format_exit(Mine())


def test_shorthands():
    assert exit_from_options() is None
    assert exit_from_options(exit="agreement") == Agreement()
    assert exit_from_options(exit_threshold=0.7) == ExitThreshold(0.7)
    assert exit_from_options(loops=3) == FixedDepth(3)
    assert exit_from_options(loops=3, loop_budget=2) == LoopBudget(2, FixedDepth(3))
    assert exit_from_options(loop_budget=2) == LoopBudget(2, FullDepth())


def test_a_budget_alone_applies_to_the_default_rule():
    assert exit_from_options(default=Agreement()) is None
    assert exit_from_options(loop_budget=2, default=Agreement()) == LoopBudget(2, Agreement())
    assert exit_from_options(loop_budget=2, default=LoopBudget(3, Agreement())) == LoopBudget(2, Agreement())
    assert exit_from_options(loop_budget=2, loops=4, default=Agreement()) == LoopBudget(2, FixedDepth(4))


@pytest.mark.parametrize(
    "options",
    [
        {"exit_threshold": 0.7, "loops": 3},
        {"exit": "agreement", "loops": 3},
        {"exit": "agreement", "exit_threshold": 0.0},
        {"exit": "agreement", "exit_threshold": 0.5, "loops": 3},
    ],
)
def test_two_rules_at_once_are_refused(options):
    with pytest.raises(RequestError) as refused:
        exit_from_options(**options)
    assert str(refused.value).startswith(f"{' and '.join(options)} exclude each other")
    assert "gate:0.7,ceiling=3" in str(refused.value)


def test_two_budgets_are_refused():
    with pytest.raises(RequestError, match="loop_budget and the budget in exit exclude each other"):
        exit_from_options(exit="gate:0.5,budget=2", loop_budget=3)
