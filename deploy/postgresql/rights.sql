-- As cml_migrator, after each `cml-workers migrate`; again it changes nothing:
--
--   psql -d cml -U cml_migrator -f deploy/postgresql/rights.sql

-- The projector finds the schema up to date, and cannot write that it is another one.
GRANT SELECT ON alembic_version TO cml_projector;
-- Checkpoints of the read models, and their generations.
GRANT SELECT, INSERT, UPDATE, DELETE ON read_model_generations TO cml_projector;
-- Workers whose events wait in quarantine.
GRANT SELECT, INSERT, UPDATE, DELETE ON read_model_held TO cml_projector;
-- The archive is bounded: what was dealt with is deleted after a while. Nobody changes what happened.
GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letters TO cml_projector;
GRANT SELECT, INSERT, DELETE ON dead_letter_outcomes TO cml_projector;
GRANT USAGE ON SEQUENCE dead_letter_outcomes_number_seq TO cml_projector;
GRANT SELECT, DELETE ON checkpoints TO cml_relay;

-- A rebuild drops tables and replaces views, which only their owner may.
DO $$
DECLARE
    found regclass;
BEGIN
    FOR found IN
        SELECT oid FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace
            AND relname ~ '^(active_)?(workers|worker_tags|operations)(_[0-9]+)?$'
            AND relkind IN ('r', 'v')
            AND relowner = current_user::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO cml_projector', found);
    END LOOP;
END
$$;
