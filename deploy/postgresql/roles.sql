-- Once, as an administrator, in the database that is for cml-workers alone:
--
--   CREATE DATABASE cml ENCODING 'UTF8' TEMPLATE template0;
--   psql -d cml -f deploy/postgresql/roles.sql
--
-- Then give each a password (\password cml_migrator, ...) or a certificate, and run `cml-workers migrate` as cml_migrator.

-- Owns what must not be lost: the archive of dead letters, and the schema's version.
CREATE ROLE cml_migrator LOGIN;
-- Owns the read models, which it makes and drops; of the rest it may do what the projector does.
CREATE ROLE cml_projector LOGIN;
-- Only for the first start of a relay after version 65339c3, whose checkpoint was kept here.
CREATE ROLE cml_relay LOGIN;

-- Hands the first tables of the read models over, and may change them.
GRANT cml_projector TO cml_migrator;

-- The administrator of a managed server is no superuser, and gives away only what its own roles may have.
GRANT cml_migrator TO CURRENT_USER;
CREATE SCHEMA cml AUTHORIZATION cml_migrator;
GRANT USAGE, CREATE ON SCHEMA cml TO cml_projector;
GRANT USAGE ON SCHEMA cml TO cml_relay;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

-- Poolers do not pass `options` of DATABASE_URL on; this holds behind them, too.
ALTER ROLE cml_migrator SET search_path = cml;
ALTER ROLE cml_projector SET search_path = cml;
ALTER ROLE cml_relay SET search_path = cml;
