"""One agent put together: settings, keys, manifest, database, and the three roles over them."""

import secrets
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from insurer_agent.acting import Acting, Source
from insurer_agent.batch import Batches
from insurer_agent.completeness import DirectoryView
from insurer_agent.config import Settings
from insurer_agent.custodian import Custodian
from insurer_agent.depositor import Depositor
from insurer_agent.keys import AgentKeys
from insurer_agent.limits import RequestLimits
from insurer_agent.requester import Requester
from insurer_agent.store.api_keys import ApiKeys
from insurer_agent.store.check_jobs import CheckJobs
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database
from insurer_agent.store.idempotency import Idempotency, PostgresIdempotency
from insurer_agent.store.keyring import Keyring
from insurer_agent.store.manifests import Manifests
from insurer_agent.store.outbox import Outbox
from insurer_agent.store.own_answers import OwnAnswers
from insurer_agent.store.rechecks import Spool
from insurer_agent.store.redis_idempotency import PATIENCE, RedisIdempotency
from insurer_agent.store.register import Register
from insurer_agent.store.server import find_dsn
from insurer_agent.store.snapshots import Snapshot
from insurer_agent.store.vault import Vault
from protocol.check import shard_of_person
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.party import Party
from transport.certificates import Holder
from transport.peers import Peers
from transport.redis_link import RedisLink
from transport.settings import SettingsError, load_pins
from transport.tls import Tls, open_tls, require_agreed

BACKGROUND_LEASES = 3
"""Connections that the background work holds, one a lock."""


@dataclass(frozen=True)
class Agent:
    """What a process of an agent works with."""

    settings: Settings
    acting: Acting
    tls: Tls | None
    database: Database
    api_keys: ApiKeys
    limits: RequestLimits
    idempotency: Idempotency
    register: Register
    vault: Vault
    outbox: Outbox
    own_answers: OwnAnswers
    requester: Requester
    batches: Batches
    jobs: CheckJobs
    directory: DirectoryView
    depositor: Depositor
    custodian: Custodian

    @property
    def party(self) -> Party:
        """The member under the newest manifest; an operation takes it once."""
        return self.acting.now()

    def snapshot(self, name: str) -> Snapshot:
        """Return the snapshots of a name, for the register."""
        return Snapshot(name, self.database, self.vault, self.register)

    def spool(self) -> Spool:
        """Return an empty spool for a recheck."""
        shard_of = partial(shard_of_person, self.party)
        return Spool(self.database, self.register, self.vault, shard_of, secrets.token_bytes)

    @classmethod
    def open(cls, state: Path, *, connections: int | None = None) -> "Agent":
        """Read and check everything; raise `SettingsError` or `Problem` with what to change."""
        settings = Settings.load(state)
        keys = AgentKeys.load(state)
        database = Database(find_dsn(settings), size=connections or settings.threads // 2 + BACKGROUND_LEASES)
        database.migrate()
        manifest = load_manifest(settings, keys, database)
        party = Party(settings.member_id, keys.member, manifest)
        tls = open_tls(settings.tls, manifest, Holder(settings.member_id))
        peers, random = Peers(tls), secrets.token_bytes
        vault = Vault(keys.storage, "register", random)
        custody_vault = Vault(keys.storage, "custody", random)
        custody = PostgresCustody(database, custody_vault, manifest.terms.tick_seconds, manifest.terms.epoch)
        keyring = Keyring(database, custody_vault)
        outbox = Outbox(database, vault)
        acting = Acting(party, Source(open_manifests(settings, keys, database), peers))
        directory = DirectoryView(acting, peers, database, outbox, settings.deposit_seconds)
        own_answers = OwnAnswers(database, Vault(keys.storage, "own answers", random))
        requester = Requester(acting, peers, directory, own_answers, settings.check_seconds, random)
        return cls(
            settings=settings,
            acting=acting,
            tls=tls,
            database=database,
            api_keys=ApiKeys(database),
            limits=RequestLimits(settings, manifest.terms.alliance, Vault(keys.storage, "limits", random)),
            idempotency=_idempotency(settings, manifest, database, Vault(keys.storage, "idempotency", random)),
            register=Register(database, vault, party, random),
            vault=vault,
            outbox=outbox,
            own_answers=own_answers,
            requester=requester,
            batches=Batches(requester, partial(shard_of_person, party), threads=settings.threads),
            jobs=CheckJobs(database, Vault(keys.storage, "check jobs", random)),
            directory=directory,
            depositor=Depositor(acting, peers, outbox, settings.deposit_seconds, random),
            custodian=Custodian(party, custody, keyring, peers, random, threads=settings.threads),
        )


def _idempotency(settings: Settings, manifest: Manifest, database: Database, vault: Vault) -> Idempotency:
    if settings.redis is None:
        return PostgresIdempotency(database, vault, secrets.token_bytes)
    link = RedisLink(settings.redis, "Idempotency-Keys", PATIENCE * settings.redis_seconds)
    place = ("agent", manifest.terms.alliance, settings.member_id, "idempotency")
    return RedisIdempotency(link, place, vault, secrets.token_bytes)


def open_manifests(settings: Settings, keys: AgentKeys, database: Database) -> Manifests:
    """Return the manifests that the agent has taken; raise `SettingsError` if the admins' keys cannot be read."""
    return Manifests(database, load_pins(settings.admins), partial(_require_fit, settings, keys))


def load_manifest(settings: Settings, keys: AgentKeys, database: Database) -> Manifest:
    """Return the manifest to begin with: that of the file, or a newer one that the agent has taken since.

    Raises `SettingsError` where the file's is older than, or a fork of, what was taken, or cannot follow it.
    """
    try:
        data = settings.manifest.read_bytes()
    except OSError as error:
        raise SettingsError(f"the manifest {settings.manifest} cannot be read: {error.strerror}") from None
    try:
        return open_manifests(settings, keys, database).load(data, time.time())
    except ProtocolError as error:
        raise SettingsError(f"the manifest {settings.manifest} is refused ({error.code}): {error.hint}") from None


def _require_fit(settings: Settings, keys: AgentKeys, manifest: Manifest) -> None:
    """Refuse a manifest that is not for this agent, before it is remembered as the newest seen."""
    if manifest.terms.local and not settings.allow_local:
        raise SettingsError(
            "the manifest is for a local alliance, without its floor of persons a shard; see allow_local"
        )
    require_agreed(settings.tls, manifest)
    Party(settings.member_id, keys.member, manifest)
