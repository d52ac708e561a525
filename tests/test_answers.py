"""What is told of a check has the shape that the interface describes, whatever came of it."""

import datetime as dt
import json

from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import COUNT_RULE, RULE

from insurer_agent.requester import Answer, BudgetEnd, EndKind, LaneAnswer
from insurer_agent.rest.answers import body_of
from insurer_agent.rest.schemas import CheckAnswerSchema, ChecksAnswerSchema
from protocol.check import Verdict, Void
from protocol.watermark import Completeness

days = st.integers(dt.date(2020, 1, 1).toordinal(), dt.date(2040, 1, 1).toordinal())
ends = st.builds(BudgetEnd, days, st.sampled_from(EndKind))
rules = st.sampled_from([RULE, COUNT_RULE])
lanes = st.builds(LaneAnswer, rules, st.sampled_from([Verdict.EXCEEDS, Verdict.WITHIN]), st.none()) | st.builds(
    LaneAnswer, rules, st.just(Verdict.INDETERMINATE), st.sampled_from(Void), st.none() | ends
)
completeness = st.builds(Completeness, st.integers(5, 99), st.integers(0, 99), st.none() | st.integers(0, 2**31))


@deterministic(200)
@given(
    st.binary(min_size=16, max_size=16),
    days,
    completeness,
    st.lists(lanes, min_size=1, max_size=4),
    st.none() | st.text(max_size=64),
)
def test_an_answer_is_what_its_schema_describes(
    check_id: bytes, as_of: int, complete: Completeness, told: list[LaneAnswer], reference: str | None
) -> None:
    answer = Answer(check_id, as_of, complete, tuple(told))
    for schema, one_rule in ((CheckAnswerSchema(), True), (ChecksAnswerSchema(), False)):
        body = body_of(answer, reference, one_rule=one_rule)
        assert json.loads(json.dumps(body)) == body
        assert schema.dump(schema.load(body)) == body
        results = [body] if one_rule else body["results"]
        expected = told[:1] if one_rule else told
        assert [(one["verdict"], one["reason"]) for one in results] == [
            (lane.verdict.value, None if lane.reason is None else lane.reason.value) for lane in expected
        ]
        for one in results:
            assert one["exceeds_limit"] is {"exceeds": True, "within": False, "indeterminate": None}[one["verdict"]]
            assert (one["advice"] == "proceed") is (one["verdict"] == "within")
