#!/bin/sh
# Gives the users of roles.sql their passwords, from the environment; in the secured stack, when its database is made.
set -eu
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'EOF'
\getenv migrator CML_MIGRATOR_PASSWORD
\getenv projector CML_PROJECTOR_DATABASE_PASSWORD
ALTER ROLE cml_migrator PASSWORD :'migrator';
ALTER ROLE cml_projector PASSWORD :'projector';
EOF
