"""The dealer over HTTP: who may do what, what is handed out, and that it is handed out once."""

from __future__ import annotations

import base64
import threading
import time

import pytest

from primia.chassis import migrate
from primia.errors import NotFound, Spent
from primia.messages.inference import Deal, DealRequest, PlanStatus
from primia.mpc.material import Half, Manifest, half_size
from services.crypto_provider.material import downloads, store, tasks
from services.crypto_provider.material.domain import Sizes
from services.crypto_provider.material.standing_back import StandingBack
from services.crypto_provider.tables import Base
from tests.services.crypto_provider.conftest import PLAN_ID, offer, small_plan

PLAN = small_plan()
DIGEST = PLAN.digest().hex()


def register(speak, ctx, stock=0, batch=1, plan_id=PLAN_ID):
    answer = speak(ctx, "model-owner")("PUT", f"/plans/{plan_id}", offer(stock=stock, batch=batch))
    assert answer.status_code == 200, answer.text
    return PlanStatus.model_validate_json(answer.content)


def ask(speak, ctx, node="node-a", batch=1, digest=DIGEST, plan=PLAN_ID, ahead=False):
    wanted = DealRequest(plan=plan, digest=digest, batch=batch, ahead=ahead)
    return speak(ctx, node)("POST", "/deals", wanted)


def make_all(ctx):
    with ctx.db.reading() as session:
        waiting = list(store.being_made(session))
    for deal_id in waiting:
        tasks.deal(ctx, deal_id)


def reserved(speak, ctx, node="node-a", batch=1):
    deal = Deal.model_validate_json(ask(speak, ctx, node, batch).content)
    make_all(ctx)
    return deal.id


def state(ctx, deal_id):
    with ctx.db.reading() as session:
        return store.deal(session, deal_id).state


def files(ctx):
    folder = ctx.files.path("deals", "x").parent
    return sorted(file.name for file in folder.iterdir())


def test_the_migrated_schema_is_the_tables(dealer):
    with dealer.db.engine.connect() as connection:
        assert migrate.drift(connection, Base.metadata) == []


# -- plans ------------------------------------------------------------------------------------


def test_registering_is_idempotent_and_keeps_the_mask(dealer, speak):
    owner = speak(dealer, "model-owner")
    register(speak, dealer)
    first = owner("GET", f"/plans/{PLAN_ID}/mask").json()["seed"]
    register(speak, dealer, stock=2)
    assert owner("GET", f"/plans/{PLAN_ID}/mask").json()["seed"] == first
    assert len(base64.urlsafe_b64decode(first + "==")) == 16
    assert owner("GET", f"/plans/{PLAN_ID}").json()["stock"] == 2


def test_two_versions_with_one_plan_have_two_masks(dealer, speak):
    register(speak, dealer)
    register(speak, dealer, plan_id="b" * 32)
    owner = speak(dealer, "model-owner")
    seeds = {owner("GET", f"/plans/{x * 32}/mask").json()["seed"] for x in "ab"}
    assert len(seeds) == 2


def test_the_mask_is_sealed_in_the_database_and_given_to_its_owner_alone(dealer, speak):
    register(speak, dealer)
    seed = speak(dealer, "model-owner")("GET", f"/plans/{PLAN_ID}/mask").json()["seed"]
    raw = base64.urlsafe_b64decode(seed + "==")
    with dealer.db.reading() as session:
        assert raw not in store.plan(session, PLAN_ID).seed
    for other in ("node-a", "alice"):
        assert speak(dealer, other)("GET", f"/plans/{PLAN_ID}/mask").status_code == 403


def test_plans_are_refused(dealer, speak):
    owner = speak(dealer, "model-owner")
    wrong_digest = offer().model_copy(update={"digest": "0" * 64})
    assert owner("PUT", f"/plans/{PLAN_ID}", wrong_digest).status_code == 422
    not_a_plan = offer().model_copy(update={"plan": '{"version": 1}'})
    answer = owner("PUT", f"/plans/{PLAN_ID}", not_a_plan)
    assert (answer.status_code, answer.json()["type"]) == (
        400,
        "urn:primia:problem:malformed-message",
    )
    assert owner("PUT", "/plans/short", offer()).status_code == 422
    assert speak(dealer, "node-a")("PUT", f"/plans/{PLAN_ID}", offer()).status_code == 403
    register(speak, dealer)
    other = offer(small_plan(features=3))
    assert owner("PUT", f"/plans/{PLAN_ID}", other).status_code == 409
    unknown = {"plan": "{}", "digest": DIGEST, "stock": 1, "batch": 1, "extra": 1}
    assert owner("PUT", f"/plans/{PLAN_ID}", json=unknown).status_code == 422


def test_strangers_and_expired_tokens_are_refused(dealer, speak, cast):
    register(speak, dealer)
    assert speak(dealer, "mallory")("GET", f"/plans/{PLAN_ID}/mask").status_code == 401
    late = {"Authorization": f"Bearer {cast.token('node-a', 'crypto-provider', -120)}"}
    other = {"Authorization": f"Bearer {cast.token('node-a', 'model-owner')}"}
    for headers in (late, other):
        answer = speak(dealer, "node-a")("GET", f"/deals/{'0' * 32}", headers=headers)
        assert answer.status_code == 401


# -- deals ------------------------------------------------------------------------------------


def test_on_demand_then_spent_by_both_parties(dealer, speak):
    register(speak, dealer)
    answer = ask(speak, dealer, batch=2)
    deal = Deal.model_validate_json(answer.content)
    assert (answer.status_code, deal.state, deal.party) == (202, "dealing", 1)
    assert answer.headers["Location"] == f"/deals/{deal.id}"
    node, owner = speak(dealer, "node-a"), speak(dealer, "model-owner")
    assert node("GET", f"/deals/{deal.id}/half").status_code == 409
    make_all(dealer)
    for party, caller in ((0, owner), (1, node)):
        seen = Deal.model_validate_json(caller("GET", f"/deals/{deal.id}").content)
        assert (seen.state, seen.party, seen.node) == ("reserved", party, "node-a")
        data = caller("GET", f"/deals/{deal.id}/half").content
        assert len(data) == seen.bytes == half_size(PLAN, 2, party)
        own, other = seen.own_sha256, "0" * 64
        manifest = Manifest(*((own, other) if party == 0 else (other, own)), seen.common_sha256)
        manifest.verify([data], PLAN, 2, party)
        Half.open(data, PLAN, 2, party, bytes.fromhex(deal.id))
        assert caller("POST", f"/deals/{deal.id}/received").status_code == 200
        assert caller("POST", f"/deals/{deal.id}/received").status_code == 200  # said again
        assert caller("GET", f"/deals/{deal.id}/half").status_code == 410
    assert state(dealer, deal.id) == "spent"
    assert files(dealer) == []


def test_a_received_half_leaves_what_the_other_needs(dealer, speak):
    register(speak, dealer)
    deal = reserved(speak, dealer)
    node = speak(dealer, "node-a")
    assert node("POST", f"/deals/{deal}/received").status_code == 409  # nothing was downloaded
    node("GET", f"/deals/{deal}/half")
    node("POST", f"/deals/{deal}/received")
    assert files(dealer) == [f"{deal}.common", f"{deal}.p0"]


def test_the_stock_is_kept_and_refilled(dealer, speak):
    assert register(speak, dealer, stock=2).dealing == 2
    make_all(dealer)
    answer = ask(speak, dealer)
    assert (answer.status_code, answer.json()["state"]) == (200, "reserved")
    status = speak(dealer, "model-owner")("GET", f"/plans/{PLAN_ID}").json()
    assert (status["ready"], status["dealing"]) == (1, 1)
    tasks.refill(dealer)
    assert speak(dealer, "model-owner")("GET", f"/plans/{PLAN_ID}").json()["dealing"] == 1


def test_a_plan_of_another_release_holds_up_no_other_stock(dealer, speak):
    other, document = "00" * 16, b'{"version":1}'.decode()
    register(speak, dealer, plan_id=other)
    register(speak, dealer)
    with dealer.db.session() as session:
        for row in store.active_plans(session):
            row.stock = 1
            row.document = document if row.id == other else row.document
    tasks.refill(dealer)
    owner = speak(dealer, "model-owner")
    found = [owner("GET", f"/plans/{plan}").json()["dealing"] for plan in (other, PLAN_ID)]
    assert found == [0, 1]


def test_a_node_takes_over_a_deal_that_is_being_made(dealer, speak):
    register(speak, dealer, stock=1)
    deal = ask(speak, dealer).json()
    assert deal["state"] == "dealing"
    make_all(dealer)
    assert state(dealer, deal["id"]) == "reserved"


@pytest.mark.parametrize("point", ["start", "middle", "end"])
def test_an_interrupted_download_is_resumed(dealer, speak, point):
    register(speak, dealer)
    deal = reserved(speak, dealer)
    whole = b"".join(
        (dealer.files.path("deals", f"{deal}.{part}")).read_bytes() for part in ("p1", "common")
    )
    cut = {"start": 1, "middle": 90, "end": len(whole) - 1}[point]
    node = speak(dealer, "node-a")
    assert node("GET", f"/deals/{deal}/half").content == whole
    rest = node("GET", f"/deals/{deal}/half", headers={"Range": f"bytes={cut}-"})
    assert (rest.status_code, rest.content) == (206, whole[cut:])
    assert rest.headers["Content-Range"] == f"bytes {cut}-{len(whole) - 1}/{len(whole)}"
    for again in (0, cut, cut - 1):
        headers = {"Range": f"bytes={again}-"}
        assert node("GET", f"/deals/{deal}/half", headers=headers).status_code == 410


def test_downloads_from_elsewhere_are_refused(dealer, speak):
    register(speak, dealer)
    deal = reserved(speak, dealer)
    node = speak(dealer, "node-a")
    assert node("GET", f"/deals/{deal}/half", headers={"Range": "bytes=5-"}).status_code == 409
    assert node("GET", f"/deals/{deal}/half", headers={"Range": "bytes=1-2"}).status_code == 422
    assert node("GET", f"/deals/{'0' * 32}/half").status_code == 404
    for name, status in (("node-b", 403), ("alice", 403)):
        other = speak(dealer, name)
        assert other("GET", f"/deals/{deal}/half").status_code == status
        assert other("GET", f"/deals/{deal}").status_code == status
        assert other("DELETE", f"/deals/{deal}").status_code == status
    assert state(dealer, deal) == "reserved"


@pytest.mark.parametrize("burner", ["node-a", "model-owner"])
def test_either_party_burns(dealer, speak, burner):
    register(speak, dealer)
    deal = reserved(speak, dealer)
    for _ in range(2):
        assert speak(dealer, burner)("DELETE", f"/deals/{deal}").status_code == 204
    assert state(dealer, deal) == "spent"
    assert files(dealer) == []
    assert speak(dealer, "node-a")("GET", f"/deals/{deal}/half").status_code == 410
    assert speak(dealer, "node-a")("POST", f"/deals/{deal}/received").status_code == 410
    seen = speak(dealer, "node-a")("GET", f"/deals/{deal}").json()
    assert (seen["state"], seen["reason"]) == ("spent", f"burned by {burner}")


def test_deals_are_refused(dealer, speak):
    register(speak, dealer)
    assert ask(speak, dealer, digest="0" * 64).status_code == 409
    assert ask(speak, dealer, plan="b" * 32).status_code == 404
    assert ask(speak, dealer, node="model-owner").status_code == 403
    too_many = {"plan": PLAN_ID, "digest": DIGEST, "batch": 65}
    assert speak(dealer, "node-a")("POST", "/deals", json=too_many).status_code == 422
    assert speak(dealer, "model-owner")("DELETE", f"/plans/{PLAN_ID}").status_code == 204
    assert ask(speak, dealer).status_code == 409


def test_a_withdrawn_plan_loses_its_stock(dealer, speak):
    register(speak, dealer, stock=1)
    make_all(dealer)
    speak(dealer, "model-owner")("DELETE", f"/plans/{PLAN_ID}")
    tasks.clear(dealer)
    assert files(dealer) == []
    assert speak(dealer, "model-owner")("GET", f"/plans/{PLAN_ID}").json()["ready"] == 0


def test_a_node_has_a_bounded_number_of_open_deals(make_dealer, speak):
    ctx = make_dealer(max_open_deals=2)
    register(speak, ctx)
    first = ask(speak, ctx).json()["id"]
    assert ask(speak, ctx).status_code == 202
    refused = ask(speak, ctx)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert ask(speak, ctx, node="node-b").status_code == 202
    speak(ctx, "node-a")("DELETE", f"/deals/{first}")
    assert ask(speak, ctx).status_code == 202


def test_what_a_node_keeps_ahead_never_counts_against_its_images(dealer_of_few, speak):
    register(speak, dealer_of_few)
    for _ in range(3):
        assert ask(speak, dealer_of_few, ahead=True).status_code == 202
    refused = ask(speak, dealer_of_few, ahead=True)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:primia:problem:unavailable")
    assert "3 deals ahead" in refused.json()["detail"]
    assert "PRIMIA_MAX_KEPT_DEALS" in refused.json()["hint"]
    make_all(dealer_of_few)  # kept, reserved: they still count, among themselves
    assert ask(speak, dealer_of_few, ahead=True).status_code == 503
    assert [ask(speak, dealer_of_few).status_code for _ in range(3)] == [202, 202, 503]
    assert ask(speak, dealer_of_few, node="node-b", ahead=True).status_code == 202


@pytest.fixture
def dealer_of_few(make_dealer):
    return make_dealer(max_open_deals=2, max_kept_deals=3)


def test_no_room_no_deal(make_dealer, speak):
    size = Sizes.of(PLAN, 1).disk
    ctx = make_dealer(max_stock_bytes=size)
    assert register(speak, ctx, stock=3).dealing == 0  # three quarters of the room are too few
    assert ask(speak, ctx).status_code == 202
    refused = ask(speak, ctx)
    assert (refused.status_code, "no room" in refused.json()["detail"]) == (503, True)


def test_stock_and_kept_deals_leave_room_for_images_that_wait(make_dealer, speak):
    ctx = make_dealer(max_stock_bytes=4 * Sizes.of(PLAN, 1).disk)
    assert register(speak, ctx, stock=9).dealing == 3
    assert ask(speak, ctx).status_code == 202  # claimed from the stock, which is not refilled
    assert [ask(speak, ctx, ahead=True).status_code for _ in range(3)] == [202, 202, 503]
    assert [ask(speak, ctx).status_code for _ in range(2)] == [202, 503]


@pytest.mark.parametrize(("deals", "ahead"), [(0.9, False), (1.1, True)])
def test_a_deal_that_will_never_fit_is_refused_for_good(make_dealer, speak, deals, ahead):
    ctx = make_dealer(max_stock_bytes=int(deals * Sizes.of(PLAN, 1).disk))
    register(speak, ctx)
    refused = ask(speak, ctx, ahead=ahead)
    assert refused.status_code == 422
    assert "PRIMIA_MAX_STOCK_BYTES" in refused.json()["hint"]


def test_two_takers_of_one_deal(dealer, speak):
    """Of many that ask at once exactly one gets the deal in stock; each gets one of its own."""
    register(speak, dealer, stock=1)
    make_all(dealer)
    found = []
    barrier = threading.Barrier(6)

    def take(node):
        barrier.wait()
        found.append(ask(speak, dealer, node))

    nodes = ["node-a", "node-b", "node-c"] * 2
    takers = [threading.Thread(target=take, args=(node,)) for node in nodes]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert sorted(answer.status_code for answer in found) == [200] + [202] * 5
    assert len({answer.json()["id"] for answer in found}) == 6


def test_two_downloads_of_one_half_at_once(dealer, speak):
    register(speak, dealer)
    deal = reserved(speak, dealer)
    outcome = []
    barrier = threading.Barrier(4)

    def begin():
        barrier.wait()
        try:
            outcome.append(downloads.begin(dealer, deal, "node-a", None).size)
        except Spent as error:
            outcome.append(type(error).__name__)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcome)) == sorted([str(half_size(PLAN, 1, 1))] + ["Spent"] * 3)


def test_a_long_poll_ends_when_the_deal_is_made(dealer, speak):
    register(speak, dealer)
    deal = ask(speak, dealer).json()["id"]
    threading.Timer(0.3, tasks.deal, (dealer, deal)).start()
    answer = speak(dealer, "node-a")("GET", f"/deals/{deal}?wait=10")
    assert answer.json()["state"] == "reserved"
    assert speak(dealer, "node-a")("GET", f"/deals/{deal}?wait=31").status_code == 422


# -- what dies on the way ---------------------------------------------------------------------


def test_a_crash_while_dealing_leaves_nothing_usable(dealer, speak, monkeypatch):
    register(speak, dealer)
    deal = ask(speak, dealer).json()["id"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            tasks.deal(dealer, deal)
    assert state(dealer, deal) == "promised"
    assert speak(dealer, "node-a")("GET", f"/deals/{deal}/half").status_code == 409
    stale = dealer.files.path("deals", f"{deal}.1.p0")
    stale.write_bytes(b"half a deal")
    tasks.deal(dealer, deal)
    assert state(dealer, deal) == "reserved"
    speak(dealer, "node-a")("DELETE", f"/deals/{deal}")
    tasks.clear(dealer)
    assert files(dealer) == []


def test_what_fails_again_and_again_is_given_up(dealer, speak, monkeypatch):
    register(speak, dealer)
    deal = ask(speak, dealer).json()["id"]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "_write", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tasks.deal(dealer, deal)
    tasks.deal(dealer, deal)
    seen = speak(dealer, "node-a")("GET", f"/deals/{deal}").json()
    assert (seen["state"], "several attempts" in seen["reason"]) == ("failed", True)


def test_a_deal_burned_while_it_is_made_stays_burned(dealer, speak, monkeypatch):
    register(speak, dealer)
    deal = ask(speak, dealer).json()["id"]
    write = tasks._write

    def burned_meanwhile(*arguments):
        downloads.burn(dealer, deal, "node-a")
        return write(*arguments)

    monkeypatch.setattr(tasks, "_write", burned_meanwhile)
    tasks.deal(dealer, deal)
    assert state(dealer, deal) == "spent"
    assert files(dealer) == []


def test_a_full_disk_ends_the_deal_with_its_reason(make_dealer, speak):
    ctx = make_dealer()
    register(speak, ctx)
    deal = ask(speak, ctx).json()["id"]
    ctx.files._min_free = 1 << 60
    with pytest.raises(Exception, match="reserve"):
        tasks.deal(ctx, deal)
    seen = speak(ctx, "node-a")("GET", f"/deals/{deal}").json()
    assert (seen["state"], "bytes are needed" in seen["reason"]) == ("failed", True)


def test_deals_expire_and_their_files_go(dealer, speak):
    from datetime import timedelta

    register(speak, dealer)
    deal = reserved(speak, dealer)
    tasks.clear(dealer)
    assert state(dealer, deal) == "reserved"
    dealer.clock.passed = timedelta(seconds=3700)
    tasks.clear(dealer)
    assert state(dealer, deal) == "spent"
    assert files(dealer) == []


def test_the_stock_does_not_expire(dealer, speak):
    from datetime import timedelta

    register(speak, dealer, stock=1)
    make_all(dealer)
    dealer.clock.passed = timedelta(days=30)
    tasks.clear(dealer)
    assert ask(speak, dealer).json()["state"] == "reserved"


# -- who goes first ---------------------------------------------------------------------------


def test_stock_stands_back_for_kept_deals_and_these_for_images(dealer, speak, monkeypatch):
    """All asked for in the wrong order, and only the stock's message arrives."""
    register(speak, dealer, stock=1)
    with dealer.db.reading() as session:
        (stock,) = store.being_made(session)
    kept = ask(speak, dealer, node="node-b", batch=2, ahead=True).json()["id"]
    waits = ask(speak, dealer, batch=2).json()["id"]
    with dealer.db.reading() as session:
        assert store.being_made(session) == [waits, kept, stock]
    made = []
    monkeypatch.setattr(tasks, "_count", lambda _ctx, _outcome: made.append(states()))

    def states():
        return [state(dealer, deal) for deal in (waits, kept, stock)]

    tasks.deal(dealer, stock)
    assert made == [
        ["reserved", "promised", "making"],
        ["reserved", "reserved", "making"],
        ["reserved", "reserved", "ready"],
    ]


def test_a_stock_that_is_being_made_is_laid_aside(dealer, speak, monkeypatch):
    """An image that comes in the middle of a stock deal waits for a block of it, not for all."""
    register(speak, dealer, stock=1)
    with dealer.db.reading() as session:
        (stock,) = store.being_made(session)
    monkeypatch.setattr(tasks, "StandingBack", lambda *given: StandingBack(*given, seconds=0))
    reached, asked = [], []
    monkeypatch.setattr(tasks, "_make_more_urgent", lambda *_: reached.append(1))
    tasks.deal(dealer, stock)
    assert len(reached) > 1  # looked up before each block
    monkeypatch.undo()
    monkeypatch.setattr(tasks, "StandingBack", lambda *given: StandingBack(*given, seconds=0))
    look_up, seen = tasks._make_more_urgent, []

    def ask_late(ctx, deal_id):
        if deal_id == later:
            seen.append(state(ctx, later))
        if len(seen) == 2 and not asked:
            asked.append(ask(speak, ctx, batch=2).json()["id"])
        look_up(ctx, deal_id)

    register(speak, dealer, stock=2)
    with dealer.db.reading() as session:
        (later,) = store.being_made(session)
    monkeypatch.setattr(tasks, "_make_more_urgent", ask_late)
    tasks.deal(dealer, later)
    assert seen[:2] == ["making", "making"]
    assert [state(dealer, deal) for deal in (*asked, later)] == ["reserved", "ready"]


def test_deals_made_ahead_share_the_threads_that_an_image_gets_whole(
    make_dealer, speak, monkeypatch
):
    """Also for products, and again after an urgent deal was made in between."""
    ctx = make_dealer(threads=4, concurrency=2)
    register(speak, ctx, stock=1)
    with ctx.db.reading() as session:
        (stock,) = store.being_made(session)
    ask(speak, ctx, batch=2)
    kept = ask(speak, ctx, batch=3, ahead=True).json()["id"]
    made, loaded, generator = [], [], tasks.kernels.generator

    def noted(name, threads):
        made.append(threads)
        return generator(name, threads)

    monkeypatch.setattr(tasks.kernels, "generator", noted)
    monkeypatch.setattr(tasks.ring, "load", loaded.append)
    tasks.deal(ctx, stock)
    assert made == [2, 4, 2]  # the stock's, laid aside; the image's; the kept one's
    assert loaded[:2] == [2, 4]
    assert loaded[-1] == 2
    assert (state(ctx, stock), state(ctx, kept)) == ("ready", "reserved")


def test_a_deal_that_breaks_does_not_break_the_one_that_stands_back(dealer, speak, monkeypatch):
    register(speak, dealer, stock=1)
    with dealer.db.reading() as session:
        (stock,) = store.being_made(session)
    waits = ask(speak, dealer, batch=2).json()["id"]
    write = tasks._write

    def broken(plan, row, *others):
        if row.id == waits:
            raise RuntimeError("this one alone")
        return write(plan, row, *others)

    monkeypatch.setattr(tasks, "_write", broken)
    tasks.deal(dealer, stock)
    assert (state(dealer, stock), state(dealer, waits)) == ("ready", "failed")


def test_two_refills_at_once_deal_no_more_than_one(dealer, speak, monkeypatch):
    """The route and the sweep both see what the stock lacks; one of them fills it."""
    register(speak, dealer)
    with dealer.db.session() as session:
        store.plan(session, PLAN_ID).stock = 2
    counts, started = store.stock_counts, threading.Barrier(2)

    def slowly(*given):
        found = counts(*given)
        time.sleep(0.3)
        return found

    monkeypatch.setattr(store, "stock_counts", slowly)

    def fill():
        started.wait()
        tasks.refill_plan(dealer, PLAN_ID)

    fillers = [threading.Thread(target=fill) for _ in range(2)]
    for filler in fillers:
        filler.start()
    for filler in fillers:
        filler.join()
    with dealer.db.reading() as session:
        assert len(store.being_made(session)) == 2


def test_a_lost_message_is_sent_again(dealer, speak, monkeypatch):
    register(speak, dealer)
    deal = ask(speak, dealer).json()["id"]
    sent = []
    monkeypatch.setattr(dealer.jobs, "enqueue", lambda *given, **_: sent.append(given))
    tasks.refill(dealer)
    assert ("material.deal", deal) in sent


def test_nothing_is_dealt_for_rows_that_are_gone(dealer):
    tasks.deal(dealer, "0" * 32)
    with dealer.db.reading() as session, pytest.raises(NotFound):
        store.deal(session, "0" * 32)


def test_every_route_says_what_it_does(dealer, speak):
    from primia.chassis.app import create_app
    from tests.services.crypto_provider.conftest import dealer_service

    document = create_app(dealer_service(), dealer).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            if not path.startswith(("/health", "/metrics")):
                assert "401" in operation["responses"], (method, path)
