DROP FUNCTION bloom_now_ms, bloom_capacity, bloom_suits, bloom_is_policy, bloom_is_texts, bloom_retry_delay_ms;
