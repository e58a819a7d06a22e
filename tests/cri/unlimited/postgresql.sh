# Fills a server's shared buffers and has it sum up what is in them, then has it do a bank's work.
set -e
export PATH=/usr/lib/postgresql/15/bin:$PATH PGHOST=/tmp PGUSER=postgres PGDATABASE=postgres
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
install -d -o postgres /data/main
as_postgres initdb --no-sync -D /data/main -A trust --no-locale -E UTF8 >/dev/null
as_postgres pg_ctl -s -D /data/main -l /tmp/log -t 240 -o "-k /tmp -c shared_buffers=2GB" start

# A row takes a page. What is inserted like this stays in the shared buffers.
psql -q <<SQL
create extension pg_buffercache;
create unlogged table wide (n int, text text);
alter table wide alter column text set storage plain;
insert into wide select n, repeat(chr(97 + n % 26), 8000) from generate_series(1, $PAGES) n;
SQL
psql -At <<SQL
select count(*), sum(n), sum(length(text)), count(distinct md5(text)) from wide;
select count(*) >= $PAGES from pg_buffercache where relfilenode = pg_relation_filenode('wide');
SQL

pgbench -q -i -s 5 2>/dev/null
pgbench -n -c 4 -j 2 -t 50 2>/dev/null | grep -o 'processed: .*'
psql -At <<SQL
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history);
SQL
as_postgres pg_ctl -s -D /data/main -t 240 stop
