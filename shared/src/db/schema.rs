//! The tables, as diesel knows them; the test `schema_matches_the_database` compares them with the migrations.

#![expect(
    missing_docs,
    reason = "the columns are described by COMMENT in the migrations"
)]

diesel::table! {
    /// One row per order.
    orders (order_uid) {
        order_uid -> Text,
        track_number -> Text,
        entry -> Text,
        delivery_name -> Text,
        delivery_phone -> Text,
        delivery_zip -> Text,
        delivery_city -> Text,
        delivery_address -> Text,
        delivery_region -> Text,
        delivery_email -> Text,
        payment_transaction -> Text,
        payment_request_id -> Text,
        payment_currency -> Text,
        payment_provider -> Text,
        payment_amount -> Int8,
        payment_dt -> Int8,
        payment_bank -> Text,
        payment_delivery_cost -> Int8,
        payment_goods_total -> Int8,
        payment_custom_fee -> Int8,
        items -> Jsonb,
        locale -> Text,
        internal_signature -> Text,
        customer_id -> Text,
        delivery_service -> Text,
        shardkey -> Text,
        sm_id -> Int8,
        date_created -> Timestamptz,
        oof_shard -> Text,
        version -> Int8,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        source_partition -> Nullable<Int4>,
        source_offset -> Nullable<Int8>,
        source_incarnation -> Nullable<Int4>,
    }
}

diesel::table! {
    /// Progress of each consumer group by partition.
    consumer_offsets (group_id, topic, partition) {
        group_id -> Text,
        topic -> Text,
        partition -> Int4,
        next_offset -> Int8,
        epoch -> Int8,
        owner -> Nullable<Uuid>,
        incarnation -> Int4,
        last_offset -> Nullable<Int8>,
        last_timestamp -> Nullable<Int8>,
        replay_until -> Nullable<Int8>,
        consecutive_bad -> Int8,
        halted -> Bool,
        updated_at -> Timestamptz,
        witnesses -> Array<Int8>,
        max_timestamp -> Nullable<Int8>,
        log_since -> Nullable<Int4>,
        doubt_until -> Nullable<Int8>,
        doubt_timestamp -> Nullable<Int8>,
    }
}

diesel::table! {
    /// Partitions stopped because the broker's offsets do not continue ours.
    offset_incidents (id) {
        id -> Int8,
        group_id -> Text,
        topic -> Text,
        partition -> Int4,
        incarnation -> Int4,
        kind -> Text,
        next_offset -> Int8,
        low_watermark -> Int8,
        high_watermark -> Int8,
        resume_offset -> Nullable<Int8>,
        resume_incarnation -> Nullable<Int4>,
        detail -> Text,
        detected_at -> Timestamptz,
        resolved_at -> Nullable<Timestamptz>,
        matched_offset -> Nullable<Int8>,
    }
}

diesel::table! {
    /// Messages refused for ever.
    dead_letters (id) {
        id -> Int8,
        group_id -> Text,
        topic -> Text,
        incarnation -> Int4,
        partition -> Int4,
        offset -> Int8,
        key -> Nullable<Bytea>,
        payload -> Nullable<Bytea>,
        payload_size -> Int8,
        headers -> Jsonb,
        message_timestamp -> Nullable<Timestamptz>,
        reason -> Text,
        detail -> Text,
        state -> Text,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        relayed_at -> Nullable<Timestamptz>,
        blanked_at -> Nullable<Timestamptz>,
        blanked_why -> Nullable<Text>,
        relay_error -> Nullable<Text>,
    }
}

diesel::table! {
    /// The ledger: what was deleted or erased, by keyed hashes.
    removed_orders (hash) {
        hash -> Uuid,
        kind -> Text,
        how -> Text,
        removed_at -> Timestamptz,
        positions -> Jsonb,
    }
}

diesel::table! {
    /// The key of these hashes.
    removed_orders_key (is_only) {
        is_only -> Bool,
        inner_pad -> Bytea,
        outer_pad -> Bytea,
    }
}

diesel::table! {
    /// The identity of the database.
    service_history (is_only) {
        is_only -> Bool,
        id -> Uuid,
        system_identifier -> Int8,
        timeline -> Int4,
        made_at -> Timestamptz,
    }
}
