"""A body of ``POST /v1/score`` as groups: what the route does in two steps."""

from jrm_service.api.parse import Parsed, load_score_request, read_score_request


def parse_score_request(
    content_type: str, body: bytes | bytearray, *, content_encoding: str, max_candidates: int
) -> Parsed:
    content = load_score_request(content_type, body, content_encoding=content_encoding)
    return read_score_request(content, max_candidates=max_candidates)
