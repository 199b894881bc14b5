"""``POST /v1/explain``: this server has no language head running, and says so."""

from __future__ import annotations

from fastapi import APIRouter

from jrm_service.errors import ExplainDisabled


def explain_router() -> APIRouter:
    """Both spellings of the route answer 503 ``explain_disabled``."""
    router = APIRouter(tags=["explain"])

    async def explain() -> None:
        """Critiques come from the language head, which this process does not serve."""
        raise ExplainDisabled("this process serves scores only", retry_after=60)

    for path in ("/v1/explain", "/explain"):
        router.add_api_route(
            path,
            explain,
            methods=["POST"],
            operation_id=f"explain{path.replace('/', '_')}",
            include_in_schema=False,  # the schema says what this process serves
        )
    return router
