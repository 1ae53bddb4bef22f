"""What requests may ask and what answers look like, as pydantic models: the source of the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ovbridge.serve.limits import Limits

_LIMITS = Limits()

BOX_PATTERN = r"^\d{1,6}(\.\d{1,4})?(,\d{1,6}(\.\d{1,4})?){3}$"

Box = Annotated[list[float], Field(min_length=4, max_length=4)]


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FailureDetail(Answer):
    """Why a request was refused."""

    status: int = Field(description="the HTTP status again")
    code: str = Field(description="stable, for programs", examples=["body_too_large"])
    message: str = Field(description="for people: what is wrong and what to do")


class Failure(Answer):
    """The form of every answer that is not a success."""

    error: FailureDetail


class Detection(Answer):
    """One thing found."""

    name: str
    score: float = Field(ge=0, le=1)
    box_xyxy: Box = Field(description="left, top, right, bottom in pixels of the upright picture")


class DetectAnswer(Answer):
    """What was found in a picture, best first."""

    width: int = Field(description="of the upright picture, in pixels")
    height: int
    names: list[str] = Field(description="what was looked for")
    detections: list[Detection]


class NamedEmbedding(Answer):
    """A name and its unit vector."""

    name: str
    embedding: list[float]


class EmbedAnswer(Answer):
    """Unit embeddings in the space that detector and store share: compare them by dot product."""

    encoder: str = Field(description="the CLIP that made them")
    dim: int
    names: list[NamedEmbedding]
    image: list[float] | None = Field(description="of the picture, or of the box in it; null without one")


class VocabularyName(Answer):
    """A name whose embedding the checkpoint stores."""

    name: str
    role: str = Field(description="base: trained with boxes; novel: without any; unused: neither")


class VocabularyAnswer(Answer):
    """What the checkpoint knows by itself; other names are embedded by its text encoder."""

    checkpoint: str
    stage: str
    names: list[VocabularyName]
    text_encoder: str
    templates: list[str]
    search: bool = Field(description="whether /v1/search has a label store to look in")
    max_names: int
    max_body_bytes: int
    max_pixels: int


class Region(Answer):
    """One region of the label store."""

    image: str = Field(description="its image, relative to the folder that was labelled")
    box_xyxy: Box = Field(description="pixels of that image")
    similarity: float = Field(description="cosine, -1 to 1")
    objectness: float = Field(description="the proposer's score")
    thumbnail: str | None = Field(description="a small JPEG as a data: address, if asked for and at hand")


class SearchAnswer(Answer):
    """Regions, nearest first."""

    regions: list[Region]


class Health(Answer):
    """Alive, or ready."""

    status: str


Name = Annotated[str, Field(min_length=1, max_length=_LIMITS.name_characters)]
Text = Annotated[str, Field(min_length=1, max_length=_LIMITS.name_characters)]
NamesField = Field(
    default=None,
    max_length=_LIMITS.names,
    description="what to look for, repeated or with commas between; 'sofa|couch' are synonyms, 'mug=0.4' has a "
    "threshold of its own; without names, the stored vocabulary",
    examples=[["mug", "kite"]],
)


class Asked(BaseModel):
    """Base of what requests ask; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectAsked(Asked):
    """Parameters of /v1/detect, in the query or in the form."""

    names: list[Name] | None = NamesField
    threshold: float = Field(default=0.3, ge=0, le=1, description="only scores above it")
    max_detections: int = Field(default=100, ge=1, le=_LIMITS.detections, description="the best so many")


class EmbedAsked(Asked):
    """Parameters of /v1/embed."""

    names: list[Name] | None = Field(default=None, max_length=_LIMITS.names, description="texts to embed")
    box: str | None = Field(default=None, pattern=BOX_PATTERN, description="left,top,right,bottom in the picture")


class TextSearchAsked(Asked):
    """Parameters of GET /v1/search."""

    text: Text = Field(description="what to look for", examples=["a striped umbrella"])
    top: int = Field(default=20, ge=1, le=_LIMITS.search_results)
    thumbnails: bool = Field(default=False, description="with small pictures of the regions")


class CropSearchAsked(Asked):
    """Parameters of POST /v1/search."""

    box: str | None = Field(default=None, pattern=BOX_PATTERN, description="left,top,right,bottom in the picture")
    top: int = Field(default=20, ge=1, le=_LIMITS.search_results)
    thumbnails: bool = Field(default=False, description="with small pictures of the regions")


def query_parameters(asked: type[Asked]) -> list[dict[str, Any]]:
    """The OpenAPI description of a model's fields as query parameters."""
    schema = asked.model_json_schema()
    required = schema.get("required", [])
    parameters = []
    for name, field in schema["properties"].items():
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "description": field.get("description", ""),
                "schema": _plain(field),
            }
        )
    return parameters


def form_schema(asked: type[Asked] | None, *, image_required: bool) -> dict[str, Any]:
    """The OpenAPI description of a multipart form: the picture and a model's fields."""
    fields = asked.model_json_schema()["properties"] if asked is not None else {}
    picture = {"type": "string", "format": "binary", "description": "a JPEG, PNG, WebP, GIF, BMP or TIFF file"}
    return {
        "type": "object",
        "properties": {"image": picture} | {name: _plain(field) for name, field in fields.items()},
        "required": ["image"] if image_required else [],
        "additionalProperties": False,
    }


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """A field without the null that stands for "not given": an absent parameter is simply absent."""
    choices = [choice for choice in field.get("anyOf", []) if choice.get("type") != "null"]
    outer = {key: value for key, value in field.items() if key not in ("anyOf", "title", "default")}
    if field.get("default") is not None:
        outer["default"] = field["default"]
    return choices[0] | outer if choices else outer
