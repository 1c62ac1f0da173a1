-- Distributes the tables by owner. Run it once, after the migrations, on the coordinator:
-- psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f citus.sql

BEGIN;

ALTER TABLE tasks DROP CONSTRAINT tasks_user_id_fkey;
ALTER TABLE deletions DROP CONSTRAINT deletions_user_id_fkey;
ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_user_id_fkey;
ALTER TABLE tags DROP CONSTRAINT tags_user_id_fkey;
ALTER TABLE sessions DROP CONSTRAINT sessions_user_id_fkey;
ALTER TABLE emails DROP CONSTRAINT emails_user_id_fkey;
ALTER TABLE task_tags
    DROP CONSTRAINT task_tags_user_id_task_id_fkey, DROP CONSTRAINT task_tags_user_id_tag_id_fkey;

SELECT create_reference_table('emails');
SELECT create_reference_table('revocations');
SELECT create_distributed_table('users', 'id', colocate_with => 'none');
SELECT create_distributed_table('tasks', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('deletions', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('idempotency_keys', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('tags', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('task_tags', 'user_id', colocate_with => 'users');
SELECT create_distributed_table('sessions', 'user_id', colocate_with => 'users');

ALTER TABLE tasks ADD CONSTRAINT tasks_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE deletions ADD CONSTRAINT deletions_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE idempotency_keys ADD CONSTRAINT idempotency_keys_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE tags ADD CONSTRAINT tags_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE sessions ADD CONSTRAINT sessions_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE task_tags ADD CONSTRAINT task_tags_user_id_task_id_fkey
    FOREIGN KEY (user_id, task_id) REFERENCES tasks (user_id, id) ON DELETE CASCADE;
ALTER TABLE task_tags ADD CONSTRAINT task_tags_user_id_tag_id_fkey
    FOREIGN KEY (user_id, tag_id) REFERENCES tags (user_id, id) ON DELETE CASCADE;
COMMIT;
