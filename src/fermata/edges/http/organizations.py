"""/api/organizations, /api/artists and /api/accounts/id

There is no way to act as another account: what may be shared is shared by membership.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field
from starlette.responses import Response

from fermata.accounts.model import NAME_LIMIT
from fermata.edges.http.context import CallerDep, FermataDep
from fermata.edges.http.door import Door
from fermata.edges.http.errors import json_response
from fermata.edges.http.validation import ABSENT, RequestModel, Says, UuidText, WireModel
from fermata.edges.http.wire import errors
from fermata.kit.errors import ForbiddenError

router = APIRouter(route_class=Door, tags=["accounts"])

_Name = Annotated[
    str,
    Field(min_length=1, max_length=NAME_LIMIT),
    Says(missing="name is required", empty="name is required"),
]


class CreateOrganizationRequest(RequestModel):
    model_config = ConfigDict(str_strip_whitespace=True)

    name: _Name
    #: The caller's own account, if given at all.
    accountId: Annotated[UuidText, Says(wrong="accountId must be a valid UUID")] = ABSENT


class AddMemberRequest(RequestModel):
    organizationId: Annotated[UuidText, Says(wrong="organizationId must be a valid UUID")]
    #: Accounts have no e-mail address here, so that there is no other way to name one.
    accountId: Annotated[
        UuidText,
        Says(
            wrong="accountId must be a valid UUID",
            missing="Provide exactly one of accountId or email; this server knows accountId only",
        ),
    ]


class CreateArtistRequest(RequestModel):
    model_config = ConfigDict(str_strip_whitespace=True)

    name: _Name
    organizationId: Annotated[UuidText, Says(wrong="organizationId must be a valid UUID")] = ABSENT


class ShareArtistRequest(RequestModel):
    artistId: Annotated[UuidText, Says(wrong="artistId must be a valid UUID")]
    organizationId: Annotated[UuidText, Says(wrong="organizationId must be a valid UUID")]


class Done(WireModel):
    status: Literal["success"]


class AccountIdAnswer(Done):
    accountId: str


class Named(WireModel):
    id: str
    name: str


class OrganizationItem(WireModel):
    id: str
    organization_id: str
    organization_name: str
    organization_image: str | None


class OrganizationList(Done):
    organizations: list[OrganizationItem]


class OneOrganization(Done):
    organization: Named


class OneArtist(Done):
    artist: Named


class MemberAdded(Done):
    id: str
    account_id: str


class ArtistShared(Done):
    id: str


@router.get("/api/accounts/id", summary="Who am I", response_model=AccountIdAnswer, responses=errors(401))
async def get_account_id(caller: CallerDep) -> Response:
    """The account that the key belongs to."""
    return json_response({"status": "success", "accountId": caller.account_id})


@router.get(
    "/api/organizations",
    summary="List organizations",
    response_model=OrganizationList,
    responses=errors(401),
)
async def list_organizations(caller: CallerDep, fermata: FermataDep) -> Response:
    """Organizations that the caller is a member of."""
    found = await fermata.accounts.list_organizations(caller)
    items = [
        {
            "id": organization.id,
            "organization_id": organization.id,
            "organization_name": organization.name,
            "organization_image": None,
        }
        for organization in found
    ]
    return json_response({"status": "success", "organizations": items})


@router.post(
    "/api/organizations",
    summary="Create organization",
    response_model=OneOrganization,
    responses=errors(400, 401, 403, 413),
)
async def create_organization(
    caller: CallerDep, fermata: FermataDep, wanted: CreateOrganizationRequest
) -> Response:
    """A new organization with the caller as its first member."""
    if wanted.accountId and wanted.accountId.lower() != caller.account_id:
        raise ForbiddenError("Access denied to specified account_id")
    made = await fermata.accounts.create_organization(caller, wanted.name)
    return json_response({"status": "success", "organization": {"id": made.id, "name": made.name}})


@router.post(
    "/api/organizations/members",
    summary="Add member",
    response_model=MemberAdded,
    responses=errors(400, 401, 403, 404, 413),
)
async def add_member(caller: CallerDep, fermata: FermataDep, wanted: AddMemberRequest) -> Response:
    """Lets an account into an organization of the caller. It gives nobody a right over that account."""
    organization_id, account_id = wanted.organizationId.lower(), wanted.accountId.lower()
    await fermata.accounts.add_member(caller, organization_id, account_id)
    return json_response({"status": "success", "id": organization_id, "account_id": account_id})


@router.delete(
    "/api/organizations/members",
    summary="Remove member",
    response_model=Done,
    responses=errors(400, 401, 403, 404, 409),
)
async def remove_member(
    caller: CallerDep,
    fermata: FermataDep,
    organization_id: Annotated[str, Query(max_length=NAME_LIMIT)],
    account_id: Annotated[str, Query(max_length=NAME_LIMIT)],
) -> Response:
    """Any member may remove any member, itself too, but not the last one (409)."""
    await fermata.accounts.remove_member(caller, organization_id.lower(), account_id.lower())
    return json_response({"status": "success"})


@router.post(
    "/api/organizations/artists",
    summary="Share artist with organization",
    response_model=ArtistShared,
    responses=errors(400, 401, 403, 413),
)
async def share_artist(caller: CallerDep, fermata: FermataDep, wanted: ShareArtistRequest) -> Response:
    artist_id = wanted.artistId.lower()
    await fermata.accounts.share_artist(caller, artist_id, wanted.organizationId.lower())
    return json_response({"status": "success", "id": artist_id})


@router.post(
    "/api/artists", summary="Create artist", response_model=OneArtist, responses=errors(400, 401, 403, 413)
)
async def create_artist(caller: CallerDep, fermata: FermataDep, wanted: CreateArtistRequest) -> Response:
    """A new artist of the caller or, with `organizationId`, of an organization of the caller."""
    organization_id = wanted.organizationId.lower() if wanted.organizationId else None
    made = await fermata.accounts.create_artist(caller, wanted.name, organization_id)
    return json_response({"status": "success", "artist": {"id": made.id, "name": made.name}})
