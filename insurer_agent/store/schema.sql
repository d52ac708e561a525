-- The agent's database. Nothing personal stands here in clear: identities, policies and amounts are sealed under a key
-- that the database does not have, or are keyed HMACs, or are group elements under the agent's own scalar.
-- The statements are idempotent; every start of an agent runs them.

CREATE TABLE IF NOT EXISTS setting (
    name  text PRIMARY KEY,
    value bytea NOT NULL
);

-- The manifests that this agent has taken: the newest is that of all its processes, earlier ones serve deposits that were
-- made under them. Signed by the alliance's admins, and verified whenever they are read.
CREATE TABLE IF NOT EXISTS manifest (
    hash     bytea PRIMARY KEY,
    serial   numeric(20) NOT NULL,
    signed   bytea NOT NULL,
    in_force boolean NOT NULL,  -- taken as the newest, or named by the next; else for deposits alone, on the service's word
    taken_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS manifest_in_force ON manifest (serial) WHERE in_force;

CREATE TABLE IF NOT EXISTS api_key (
    name         text PRIMARY KEY,
    hash         bytea NOT NULL UNIQUE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz  -- to the hour
);
-- Keys made before there were roles may what they could, and do not end; a row that names no roles may nothing.
ALTER TABLE api_key ADD COLUMN IF NOT EXISTS roles text[] NOT NULL DEFAULT '{underwriter,data_operator}';
ALTER TABLE api_key ALTER COLUMN roles SET DEFAULT '{}';
ALTER TABLE api_key ADD COLUMN IF NOT EXISTS expires_at timestamptz;

-- Requests that bear an Idempotency-Key. `answer` is null while the request is under way.
CREATE TABLE IF NOT EXISTS idempotency (
    key_index  bytea PRIMARY KEY,  -- HMAC of (API key, Idempotency-Key)
    request    bytea NOT NULL,     -- HMAC of method, path and body
    claim      bytea NOT NULL,     -- random: whose the request under way is
    started_at timestamptz NOT NULL DEFAULT now(),
    answer     bytea               -- sealed
);
CREATE INDEX IF NOT EXISTS idempotency_age ON idempotency (started_at);

-- The agent's own policies -------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS policy (
    policy_key    bytea PRIMARY KEY,  -- HMAC of (policy number, insured, product)
    policy_number bytea NOT NULL,     -- HMAC of the number alone, which several policies may share
    sealed        bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS policy_by_number ON policy (policy_number);

CREATE TABLE IF NOT EXISTS policy_row (
    fingerprint bytea PRIMARY KEY  -- HMAC of a row's meaning: a repeated row counts once
);

-- Which policies were in force by the last snapshot of a name, and which the snapshot that is being read has; HMACs alone.
CREATE TABLE IF NOT EXISTS snapshot_policy (
    snapshot   bytea NOT NULL,  -- HMAC of the snapshot's name
    policy_key bytea NOT NULL,
    PRIMARY KEY (snapshot, policy_key)
);

CREATE TABLE IF NOT EXISTS snapshot_seen (
    snapshot   bytea NOT NULL,
    policy_key bytea NOT NULL,
    meaning    bytea,           -- HMAC of what its first good row says
    PRIMARY KEY (snapshot, policy_key)
);

-- What a recheck has not settled yet, a row a person and rule. Unlogged: the next recheck begins anew.
CREATE UNLOGGED TABLE IF NOT EXISTS recheck_lane (
    shard       integer NOT NULL,
    person_key  bytea NOT NULL,  -- HMAC of the insured and a random number of the run, so in another order each night
    rule_id     text NOT NULL,
    policy_keys bytea[] NOT NULL,
    reason      text,            -- why there was no answer, once it was asked
    PRIMARY KEY (shard, person_key, rule_id)
);

-- Checks that are asked in the background, and their answers until they are old; see check_jobs.py.
CREATE TABLE IF NOT EXISTS check_job (
    job_id      bytea PRIMARY KEY,
    owner       bytea NOT NULL,   -- HMAC of the API key
    as_csv      boolean NOT NULL,
    total       integer NOT NULL,
    done        integer NOT NULL,
    sealed      bytea NOT NULL,   -- how many by verdict
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    finished_at timestamptz
);
CREATE INDEX IF NOT EXISTS check_job_age ON check_job (created_at);

CREATE TABLE IF NOT EXISTS check_job_item (
    job_id     bytea NOT NULL REFERENCES check_job ON DELETE CASCADE,
    place      integer NOT NULL,
    shard      integer NOT NULL,
    person_key bytea NOT NULL,    -- HMAC of the person and the job
    tries      smallint NOT NULL DEFAULT 0,
    due_at     timestamptz,       -- null: it is settled
    sealed     bytea,             -- what is asked; erased once it is settled
    answer     bytea,             -- sealed
    PRIMARY KEY (job_id, place)
);
CREATE INDEX IF NOT EXISTS check_job_item_due ON check_job_item (job_id, tries, shard, person_key, place)
    WHERE due_at IS NOT NULL;

-- What the agent asked and was answered, by its own count, a row a check, person and rule.
CREATE TABLE IF NOT EXISTS own_answer (
    person_key  bytea NOT NULL,     -- HMAC
    rule_id     text NOT NULL,
    occasion    smallint NOT NULL,
    day         date NOT NULL,      -- the first on which a custodian may have charged it
    claim       bytea NOT NULL,     -- random: which check
    lanes       smallint NOT NULL,
    answers     smallint,           -- null: it is under way, or was when its process ended
    budget      bigint NOT NULL,    -- of the rule, when it was asked
    budget_days integer NOT NULL,
    asked_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (person_key, rule_id, occasion, day, claim)
);
CREATE INDEX IF NOT EXISTS own_answer_age ON own_answer USING brin (day);

-- A check's lanes are counted before it is sent, in one trip: each that may get an answer is under way from now on. Returns
-- the others, by place: before the day `until` there is no answer, for certain, or if what is under way is answered.
-- What may be under way counts for 90 s, longer than any check takes. The check itself, counted before, does not.
CREATE OR REPLACE FUNCTION count_own_answers(
    of_claim bytea, of_day date, today date, of_occasion smallint, lock_kind integer, locks integer[], persons bytea[],
    rule_ids text[], budgets bigint[], periods integer[], mosts bigint[], mosts_whatever bigint[]
) RETURNS TABLE (stopped_place integer, until date, is_certain boolean) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    -- The check waits for the count, which need not wait for the disk: what a crash takes from it custodians still know.
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_advisory_xact_lock(lock_kind, one) FROM unnest(locks) AS one;
    RETURN QUERY
    WITH lane AS (
        SELECT *, row_number() OVER (PARTITION BY person, rule ORDER BY place) AS turn
            FROM unnest(persons, rule_ids, budgets, periods, mosts, mosts_whatever)
            WITH ORDINALITY AS lane (person, rule, budget, period, most_same, most_whatever, place)
    ), known AS (
        SELECT lane.*, count.answered, count.counted,
            CASE WHEN count.same THEN lane.most_same ELSE lane.most_whatever END AS most
        FROM lane, LATERAL (
            SELECT coalesce(sum(o.answers), 0) AS answered, coalesce(bool_and(
                o.budget = lane.budget AND o.budget_days = lane.period), true) AS same,
                coalesce(sum(coalesce(o.answers, o.lanes)), 0) AS counted
            FROM own_answer o WHERE o.person_key = lane.person AND o.rule_id = lane.rule AND o.occasion = of_occasion
                AND o.day > today - lane.period AND o.claim <> of_claim
                AND (o.answers IS NOT NULL OR o.asked_at > now() - interval '90 seconds')
        ) count
    ), judged AS (
        SELECT *, turn + counted <= most AS free,
            greatest(least(count(*) OVER (PARTITION BY person, rule), most - counted), 0) AS taken FROM known
    ), kept AS (
        INSERT INTO own_answer (person_key, rule_id, occasion, day, claim, lanes, budget, budget_days)
            SELECT person, rule, of_occasion, of_day, of_claim, count(*), min(budget), min(period)
                FROM judged WHERE free GROUP BY person, rule
            ON CONFLICT DO NOTHING
    )
    SELECT (place - 1)::integer, coalesce((
        -- The first day such that of what was counted after it there is less than may be.
        SELECT min(later.day) FROM (
            SELECT o.day, sum(sum(coalesce(o.answers, o.lanes))) OVER (ORDER BY o.day DESC)
                    - sum(coalesce(o.answers, o.lanes)) AS answers
                FROM own_answer o WHERE o.person_key = person AND o.rule_id = rule AND o.occasion = of_occasion
                    AND o.day > today - period AND o.claim <> of_claim
                    AND (o.answers IS NOT NULL OR o.asked_at > now() - interval '90 seconds')
                GROUP BY o.day
        ) later WHERE later.answers + taken < most
    ), of_day) + period, answered >= most
    FROM judged WHERE NOT free;
END
$$;

-- The outbox: a deposit stays until every holder has given its receipt. `entry` is erased once the deposit's bytes are
-- stored in `made`, and that once it is complete. Both are sealed: the hashes of a deposit's envelopes stand at its holders.
CREATE TABLE IF NOT EXISTS deposit (
    seq             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    deposit_id      bytea NOT NULL UNIQUE,
    person_key      bytea NOT NULL,  -- HMAC of the insured
    shard           integer NOT NULL,
    excluded        smallint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    entry           bytea,
    made            bytea,
    receipts        jsonb NOT NULL DEFAULT '{}',
    tick            bigint,          -- the highest that a receipt states
    attempts        integer NOT NULL DEFAULT 0,
    refusals        integer NOT NULL DEFAULT 0,  -- in a row
    set_aside_at    timestamptz,     -- refused again and again, or damaged: only its person's deposits wait for it
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_reason     text,
    made_at         timestamptz,
    completed_at    timestamptz
);
ALTER TABLE deposit ADD COLUMN IF NOT EXISTS manifest bytea;  -- hash of the one that `made` was made under
CREATE INDEX IF NOT EXISTS deposit_due ON deposit (next_attempt_at, seq) WHERE completed_at IS NULL AND made_at IS NULL;
CREATE INDEX IF NOT EXISTS deposit_behind ON deposit
    (shard, excluded, jsonb_path_query_array(receipts, '$.keyvalue() ? (@.value != null).key'), next_attempt_at)
    WHERE made_at IS NOT NULL AND completed_at IS NULL;
CREATE INDEX IF NOT EXISTS deposit_made ON deposit (made_at) WHERE made_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS deposit_person ON deposit (person_key, made_at);
CREATE INDEX IF NOT EXISTS deposit_unmade ON deposit (person_key, seq) WHERE made_at IS NULL;
CREATE INDEX IF NOT EXISTS deposit_sent ON deposit (shard) WHERE made IS NOT NULL AND made_at IS NULL AND set_aside_at IS NULL;
CREATE INDEX IF NOT EXISTS deposit_set_aside ON deposit (seq) WHERE set_aside_at IS NOT NULL AND made_at IS NULL;
CREATE INDEX IF NOT EXISTS deposit_tick ON deposit (tick);

-- Asked every second of an agent that is idle; from when the table was empty, no plan must read all of it.
CREATE OR REPLACE FUNCTION any_deposit_is_open() RETURNS boolean LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN EXISTS (SELECT FROM deposit WHERE completed_at IS NULL AND made_at IS NULL)
        OR EXISTS (SELECT FROM deposit WHERE completed_at IS NULL AND made_at IS NOT NULL);
END
$$;

-- What is kept for others --------------------------------------------------------------------------------------------

-- A deposit of another member that is pending, seen by no check; or an id that was given up for good.
CREATE TABLE IF NOT EXISTS custody_pending (
    depositor     text NOT NULL,
    id_key        bytea NOT NULL,    -- HMAC of depositor and deposit id
    shard         integer NOT NULL,
    epoch         integer,
    kind          smallint,
    token         bytea,             -- T, the custodian's index of the person
    product       text,
    day           date,
    excluded      smallint,
    chain_key     bytea,             -- HMAC of the id of the policy's issue
    sealed        bytea,             -- deposit id, shares, and what its range proof is verified by
    envelope_hash bytea NOT NULL,
    not_before    bigint,            -- the least tick that it may be committed at
    prepared_at   double precision NOT NULL,  -- when it was last asked for, Unix seconds
    never         boolean NOT NULL DEFAULT false,
    PRIMARY KEY (id_key),
    CHECK (never OR token IS NOT NULL)
);
CREATE INDEX IF NOT EXISTS custody_pending_person ON custody_pending (token) WHERE NOT never;

-- Committed deposits, a partition a calendar month of days (see partitions.py): a window is read by one index, and what
-- no window reaches any more is dropped a whole partition at a time.
CREATE TABLE IF NOT EXISTS custody_row (
    depositor     text NOT NULL,
    id_key        bytea NOT NULL,
    shard         integer NOT NULL,
    epoch         integer NOT NULL,
    kind          smallint NOT NULL,
    token         bytea NOT NULL,
    product       text NOT NULL,
    day           date NOT NULL,
    excluded      smallint NOT NULL,
    chain_key     bytea NOT NULL,
    shares        bytea NOT NULL,    -- sealed, with the deposit id
    proof         bytea NOT NULL,    -- sealed: what its range check opened
    envelope_hash bytea NOT NULL,
    not_before    bigint NOT NULL,
    tick          bigint NOT NULL,
    PRIMARY KEY (id_key, day)
) PARTITION BY RANGE (day);
CREATE INDEX IF NOT EXISTS custody_row_person ON custody_row (token, day);
CREATE TABLE IF NOT EXISTS custody_row_later PARTITION OF custody_row DEFAULT;

-- Range checks that were answered: one header is garbled once.
CREATE TABLE IF NOT EXISTS range_attempt (
    header_key bytea PRIMARY KEY,  -- HMAC of the header's hash, which others of the four have too
    day        date NOT NULL,
    passed     bytea[] NOT NULL    -- ids of what was pending for too long to be counted: given up if it stands
);
CREATE INDEX IF NOT EXISTS range_attempt_age ON range_attempt (day);

-- Sums of the stamps of one depositor's deposits: by these the four that judge a deposit of his are told apart.
CREATE TABLE IF NOT EXISTS custody_own_stamp (
    depositor text NOT NULL,
    shard     integer NOT NULL,
    excluded  smallint NOT NULL,
    sum       bytea NOT NULL,
    PRIMARY KEY (depositor, shard, excluded)
);

-- Sums of deposit stamps, group elements, one row a tick; ticks too old to be asked for are folded into one.
CREATE TABLE IF NOT EXISTS custody_stamp (
    shard    integer NOT NULL,
    excluded smallint NOT NULL,
    tick     bigint NOT NULL,
    sum      bytea NOT NULL,
    PRIMARY KEY (shard, excluded, tick)
);

CREATE TABLE IF NOT EXISTS check_request (
    requester      text NOT NULL,
    check_id       bytea NOT NULL,
    statement_hash bytea NOT NULL,
    tick           bigint NOT NULL,
    day            date NOT NULL,
    spent          smallint[] NOT NULL DEFAULT '{}',  -- lanes whose budget was spent when the check was charged
    attempts       smallint[] NOT NULL DEFAULT '{}',  -- those that were answered
    PRIMARY KEY (requester, check_id)
);
ALTER TABLE check_request ADD COLUMN IF NOT EXISTS spent smallint[] NOT NULL DEFAULT '{}';
ALTER TABLE check_request ADD COLUMN IF NOT EXISTS attempts smallint[] NOT NULL DEFAULT '{}';
DO $$
BEGIN
    IF to_regclass('check_attempt') IS NOT NULL THEN  -- where they stood before: what was answered is not answered again
        UPDATE check_request r SET attempts = (
            SELECT coalesce(array_agg(a.attempt), '{}') FROM check_attempt a
                WHERE a.requester = r.requester AND a.check_id = r.check_id
        );
        DROP TABLE check_attempt;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS budget (
    requester_group text NOT NULL,
    token           bytea NOT NULL,
    rule_id         text NOT NULL,
    occasion        smallint NOT NULL,
    day             date NOT NULL,
    answers         integer NOT NULL,
    PRIMARY KEY (requester_group, token, rule_id, occasion, day)
);

-- What a check reads as of a tick, in one statement, which sees one state of the database: the shard's stamps (with no
-- depositor, sums in `sealed`), then the persons' rows from a day on, `at_most` so many, or all.
DROP FUNCTION IF EXISTS read_custody(integer, bigint, bytea[], date, integer);
CREATE OR REPLACE FUNCTION read_custody(
    of_shard integer, until bigint, tokens bytea[], first_day date, of_epoch integer, at_most bigint
) RETURNS TABLE (
    depositor text, id_key bytea, shard integer, epoch integer, kind smallint, token bytea, product text, day date,
    excluded smallint, chain_key bytea, envelope_hash bytea, not_before bigint, sealed bytea
) LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
        SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, s.excluded, NULL, NULL, NULL, s.sum FROM custody_stamp s
            WHERE s.shard = of_shard AND s.tick <= until
        UNION ALL (SELECT r.depositor, r.id_key, r.shard, r.epoch, r.kind, r.token, r.product, r.day, r.excluded,
                r.chain_key, r.envelope_hash, r.not_before, r.shares FROM custody_row r
            WHERE r.token = ANY(tokens) AND r.day >= first_day AND r.tick <= until AND r.shard = of_shard
                AND r.epoch = of_epoch LIMIT at_most);
END
$$;

-- One attempt of a check: recorded, and on the check's first attempt its lanes charged, in one trip. Returns what stands
-- of the check before this attempt, the lanes whose budget was spent when it was charged, and whether the attempt is new.
-- Where the request is another one than stands, or the attempt was answered before, nothing is changed.
CREATE OR REPLACE FUNCTION admit_check(
    of_requester text, of_check bytea, of_attempt smallint, request_hash bytea, as_of_tick bigint, today date,
    charged_group text, locks bigint[], tokens bytea[], rule_ids text[], occasions smallint[], first_days date[],
    budgets bigint[]
) RETURNS TABLE (known_hash bytea, known_tick bigint, spent_lanes smallint[], is_new boolean) LANGUAGE plpgsql
-- One plan is kept, which takes a tenth of what the rest does to make; from when the tables were empty, it must not read all.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    known_hash := request_hash;
    known_tick := as_of_tick;
    spent_lanes := '{}';
    is_new := true;
    -- One budget is spread over days, a row each, so checks on both sides of midnight must wait for each other: by locks,
    -- in order, so that none locks another up. What comes after sees what the others have charged. Of several checks in
    -- one transaction the first takes the locks of all.
    PERFORM pg_advisory_xact_lock(one) FROM unnest(locks) AS one;
    INSERT INTO check_request (requester, check_id, statement_hash, tick, day, attempts)
        VALUES (of_requester, of_check, request_hash, as_of_tick, today, ARRAY[of_attempt]) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        -- Locked, so that of two who ask for one attempt at once the second finds it answered.
        SELECT statement_hash, tick, spent INTO known_hash, known_tick, spent_lanes FROM check_request
            WHERE requester = of_requester AND check_id = of_check FOR UPDATE;
        IF known_hash = request_hash AND known_tick = as_of_tick THEN
            UPDATE check_request SET attempts = attempts || of_attempt
                WHERE requester = of_requester AND check_id = of_check AND of_attempt <> ALL (attempts);
            is_new := FOUND;
        END IF;
        RETURN NEXT;
        RETURN;
    END IF;
    WITH lane AS (
        SELECT *, row_number() OVER (PARTITION BY token, rule_id, occasion ORDER BY place) AS turn
            FROM unnest(tokens, rule_ids, occasions, first_days, budgets)
            WITH ORDINALITY AS lane (token, rule_id, occasion, first_day, most, place)
    ), judged AS (
        SELECT *, turn + (
            SELECT coalesce(sum(answers), 0) FROM budget b WHERE requester_group = charged_group AND b.token = lane.token
                AND b.rule_id = lane.rule_id AND b.occasion = lane.occasion AND day >= first_day
        ) <= most AS paid FROM lane
    ), charged AS (
        INSERT INTO budget (requester_group, token, rule_id, occasion, day, answers)
            SELECT charged_group, token, rule_id, occasion, today, count(*) FROM judged WHERE paid
                GROUP BY token, rule_id, occasion
            ON CONFLICT (requester_group, token, rule_id, occasion, day)
            DO UPDATE SET answers = budget.answers + EXCLUDED.answers
    )
    SELECT coalesce(array_agg((place - 1)::smallint ORDER BY place), '{}') INTO spent_lanes FROM judged WHERE NOT paid;
    IF cardinality(spent_lanes) > 0 THEN
        UPDATE check_request SET spent = spent_lanes WHERE requester = of_requester AND check_id = of_check;
    END IF;
    RETURN NEXT;
END
$$;

CREATE TABLE IF NOT EXISTS committee_key (
    shard             integer NOT NULL,
    omitted           smallint NOT NULL,  -- -1: the key of the whole committee
    committee_version integer NOT NULL,
    made_at           bigint NOT NULL,
    sealed            bytea NOT NULL,
    confirmed_by      text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (shard, omitted, committee_version)
);
