-- Beside Memoria's own tables: what a snapshot must bring back value by value.
CREATE EXTENSION vector;
SET ROLE memoria;
CREATE TYPE mood AS ENUM ('sad', 'very "happy"');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TABLE zoo (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v vector(3), anyv vector, h halfvec(2), s sparsevec(5),
  vs vector(2)[], n numeric, f8 double precision, t text, y bytea, tsz timestamptz, ts timestamp, iv interval, u uuid,
  j json, jb jsonb, ta text[], ia integer[], m mood, p positive, r tstzrange, ip inet, bits varbit, i8 bigint,
  half bigint GENERATED ALWAYS AS (i8 / 2) STORED);
CREATE INDEX zoo_near ON zoo USING hnsw (v vector_l2_ops);
INSERT INTO zoo (v, anyv, h, s, vs, n, f8, t, y, tsz, ts, iv, u, j, jb, ta, ia, m, p, r, ip, bits, i8) VALUES
  ('[1,2.5,-3e-10]', '[0.1]', '[0.5,65504]', '{1:1.5,5:-2}/5', ARRAY['[1,2]', '[3,4]']::vector[],
   'NaN', '-0', E'a\tb\nc\\d\r\x01"', '\x00ff5c0a', '2025-06-01 00:00:00+02', 'infinity', '1 year -2 days 03:04:05.678',
   'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', E'{"b":  1.10, "a": 1e400, "a": [1, "\\u0000"]}', '{"b": 1.10, "é": "🦊"}',
   ARRAY['', NULL, 'NULL', 'a"b\c'], '{{1,2},{3,NULL}}', 'very "happy"', 7, '[2025-01-01 00:00+00,)', '::1/64', '10101',
   9223372036854775807),
  (NULL, '[3.4028235e38,-1e-45]', NULL, '{}/5', '{}', '-Infinity', '5e-324', 'Ξεσκεπάζω 👩‍👩‍👧‍👦', '',
   '0044-03-15 00:00:00+00 BC', '12025-01-01 00:00:00', NULL, NULL, 'null', 'null', '{}', '{}', 'sad', 1, 'empty', NULL,
   '', -9223372036854775808),
  ('[0,0,0]', NULL, NULL, NULL, NULL, 123456789012345678901234567890.123456789, 'NaN', '', NULL, NULL, NULL, NULL, NULL,
   NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
