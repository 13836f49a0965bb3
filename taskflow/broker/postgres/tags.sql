-- The index of the jobs by their tags.

-- Returns whether a job with these extras has tags: see job_schema.py.
CREATE FUNCTION @.has_tags(extras bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(substr(extras, 2, 2) = P.TAGGED, false)
$$;

-- Returns where the tags begin in extras that has_tags() accepts, and how many bytes they have. Extras may contain any bytes.
CREATE FUNCTION @.place_of_tags(extras bytea, OUT at integer, OUT size integer) LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE kind WHEN 217 THEN 6 WHEN 218 THEN 7 ELSE 5 END, -- the head of a msgpack string has 1 byte for a size up to 31, else 2 or 3
        CASE kind WHEN 217 THEN get_byte(head, 4) WHEN 218 THEN 256 * get_byte(head, 4) + get_byte(head, 5) ELSE kind & 31 END
    FROM (SELECT extras || '\x000000' AS head, get_byte(extras || '\x00', 3) AS kind) AS padded
$$;

-- Returns the tags of jobs, given their ids and their extras, of which some have tags.
CREATE FUNCTION @.tags_of(ids bytea[], extras bytea[]) RETURNS TABLE (tag text, id bytea) LANGUAGE sql IMMUTABLE AS $$
    SELECT left(tag, 100), each.id
    FROM unnest(ids, extras) AS each (id, extras), LATERAL @.place_of_tags(each.extras) AS place,
        unnest(string_to_array(encode(substr(each.extras, place.at, place.size), 'escape'), ' ')) AS tag
    WHERE @.has_tags(each.extras)
$$;

CREATE FUNCTION @.index_tags(ids bytea[], extras bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO @.tags (tag, id) SELECT tag, id FROM @.tags_of(ids, extras) ON CONFLICT DO NOTHING;
END
$$;

CREATE FUNCTION @.drop_tags(ids bytea[], extras bytea[]) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    DELETE FROM @.tags USING @.tags_of(ids, extras) AS dropped WHERE tags.tag = dropped.tag AND tags.id = dropped.id;
END
$$;
