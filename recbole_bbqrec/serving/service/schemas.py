"""What requests may hold and answers do hold, with the limits of each. What is not named here is refused."""

import math
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ...errors import did_you_mean
from ...preparation.tables import ITEM_COLUMNS, likely

MAX_HISTORY = 1000
MAX_CHOICE = 10_000
MAX_K = 500
MAX_EVENTS = 1000
MAX_NEW_ITEMS = 1000
MAX_COLUMNS = 64
UNKNOWN = "unknown_field"
"""Type of an error whose message begins with the name of a field that should not be there."""
LATEST_TIME = 1e11
"""In the year 5138: a time beyond it was given in milliseconds."""

# No control characters: they are no part of a name, and PostgreSQL keeps no NUL.
PLAIN = r"^[^\x00-\x1f\x7f]*$"
Token = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=PLAIN)]
Text = Annotated[str, StringConstraints(max_length=20_000, pattern=r"^[^\x00]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Name an unknown field before the one that is missing, which was meant perhaps."""
        known = list(cls.model_fields)
        for name in given if isinstance(given, dict) else ():
            if name not in known:
                hint = did_you_mean(name, known, f"expected {', '.join(known)}")
                shown = repr(name[:40])[1:-1]
                raise PydanticCustomError(UNKNOWN, "{found}: unknown, {hint}", {"found": shown, "hint": hint})
        return given


class RecommendRequest(_Strict):
    """A history in time order, and what is wanted after it."""

    history: Annotated[list[Token], Field(max_length=MAX_HISTORY)]
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    exclude_seen: Annotated[bool, Field(description="leave out the items of the history")] = True
    allow: Annotated[list[Token] | None, Field(max_length=MAX_CHOICE, description="choose from these alone")] = None
    deny: Annotated[list[Token] | None, Field(max_length=MAX_CHOICE, description="choose none of these")] = None
    explain: Annotated[bool, Field(description="add the main reason for each item")] = False


class EventModel(_Strict):
    """A user met an item. Sent again with the same `time` it is kept once."""

    user: Token
    item: Token
    time: Annotated[float | None, Field(ge=0, allow_inf_nan=False, description="seconds since 1970; default: now")] = (
        None
    )

    @field_validator("time")
    @classmethod
    def _in_seconds(cls, time: float | None) -> float | None:
        if time is not None and time > LATEST_TIME:
            raise PydanticCustomError("time", "found {found}, expected seconds since 1970", {"found": f"{time:.15g}"})
        return time


class EventsRequest(_Strict):
    events: Annotated[list[EventModel], Field(min_length=1, max_length=MAX_EVENTS)]


def _spelt(given: Any) -> Any:
    """A number as a text; "" for null."""
    if isinstance(given, float) and math.isfinite(given):
        return f"{given:.15g}"
    is_whole = isinstance(given, int) and not isinstance(given, bool)
    return "" if given is None else str(given) if is_whole else given


def _joined(given: Any) -> Any:
    """As `_spelt`, and a list of texts as one text."""
    is_list = isinstance(given, list) and all(isinstance(part, str) for part in given)
    return " ".join(given) if is_list else _spelt(given)


class NewItem(BaseModel):
    """An item that the model was not trained with; further fields are its text columns, as in the data set.

    Usual names such as `sku` and `name` will do, numbers and lists become texts, and a column that is missing is blank.
    Images are added on the command line: a path in a request would be one of the server's files.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Annotated[Text, BeforeValidator(_joined)]] = Field(init=False)

    item_id: Annotated[Token, BeforeValidator(_spelt)]
    vectors: Annotated[
        # One wrong number is enough to say so: thousands of errors would keep the service from all others for seconds.
        dict[Token, Annotated[list[Number], Field(min_length=1, max_length=8192), FailFast()]] | None,
        Field(max_length=16, description='ready vectors by modality, as `{"text": [0.1, 0.2]}`'),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        names = list(given) if isinstance(given, dict) and "item_id" not in given else []
        found = likely(ITEM_COLUMNS["token"], names)
        return {"item_id" if name in found else name: given[name] for name in names} if len(found) == 1 else given

    @model_validator(mode="after")
    def _without_image(self) -> "NewItem":
        if "image" in (self.__pydantic_extra__ or {}):
            raise PydanticCustomError(UNKNOWN, "image: not by HTTP; bbqrec items add takes image files")
        return self


class NewItemsRequest(_Strict):
    items: Annotated[list[NewItem], Field(min_length=1, max_length=MAX_NEW_ITEMS)]

    @field_validator("items")
    @classmethod
    def _few_columns(cls, items: list[NewItem]) -> list[NewItem]:
        """Every field becomes a column of all items."""
        n_columns = len({name for item in items for name in item.__pydantic_extra__ or ()})
        if n_columns > MAX_COLUMNS:
            expected = {"found": n_columns, "most": MAX_COLUMNS}
            raise PydanticCustomError(
                "too_many_columns", "found {found} different fields, expected at most {most}", expected
            )
        return items


class Shown(BaseModel):
    """An item as a page shows it; `image` is a path of this service, `code` its first code."""

    item: str
    title: str
    image: str | None
    code: int | None


class Named(BaseModel):
    item: str
    title: str


class Why(BaseModel):
    """The main reason for an item: `signal` in words, its `share` of all reasons, and the item that it comes from.

    `shared_codes` are the positions at which both items have the same code.
    """

    signal: str
    share: float
    by: Named | None
    shared_codes: list[int]


class Recommended(Shown):
    score: float
    why: Why | None = None


class Recommendations(BaseModel):
    items: list[Recommended]
    unknown: list[str]
    generation: int


class UserRecommendations(Recommendations):
    history: list[Shown]


class Stored(BaseModel):
    stored: int
    unknown: list[str]


class Added(BaseModel):
    added: int
    generation: int


class Found(BaseModel):
    items: list[Shown]


class Similar(Shown):
    score: float


class SimilarItems(BaseModel):
    items: list[Similar]


class Item(Shown):
    codes: Annotated[list[int], Field(description="-1 where the item lacks the signal")]


class Point(BaseModel):
    item: str
    title: str
    x: float
    y: float
    code: int | None


class Map(BaseModel):
    points: list[Point]


class Code(BaseModel):
    """A first code: the number of its items, those nearest their mean, and how the pages mark it."""

    code: int
    n: int
    items: list[Named]
    colour: int
    shape: int


class Codes(BaseModel):
    codes: list[Code]


class Health(BaseModel):
    status: str
    model: str
    dataset: str
    items: int
    generation: int


class Error(BaseModel):
    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Error, "description": text}
    for code, text in {
        401: "wrong or missing X-API-Key",
        408: "the request took too long to arrive",
        413: "the body is too large",
        422: "something in the request is wrong",
        429: "too many requests; see Retry-After",
        503: "overloaded or shutting down; see Retry-After",
    }.items()
}
