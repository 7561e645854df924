"""What people ask an export for, in the catalogue's words."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from pipeline.storage.annotators import pseudonym_of
from pipeline.storage.campaigns import list_categories
from schemas.errors import BadInputError


def named_filters(
    conn: Connection,
    campaign_id: str,
    *,
    categories: Sequence[str] | None = None,
    annotators: Sequence[str] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The filters of `snapshots.create_snapshot` from names.

    Args:
        conn: Any transaction.
        campaign_id: The campaign.
        categories: Their names.
        annotators: Their names or pseudonyms; snapshots keep only the latter.
        others: Filters that need no translation.

    Raises:
        BadInputError: The campaign has no such category.
        NotFoundError: There is no such annotator.
    """
    found = dict(others)
    if categories is not None:
        numbers = {category.name: category.number for category in list_categories(conn, campaign_id)}
        unknown = [name for name in categories if name not in numbers]
        if unknown:
            known = ", ".join(numbers) or "none"
            raise BadInputError(f"The campaign has no category {unknown[0]!r}. Its categories: {known}.")
        found["categories"] = sorted({numbers[name] for name in categories})
    if annotators is not None:
        found["annotators"] = sorted({pseudonym_of(conn, name) for name in annotators})
    return found
