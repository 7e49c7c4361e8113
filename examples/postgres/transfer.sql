-- One transfer: what leaves an account arrives at another, so the sum of all balances never changes.
-- The lower account is locked first, so that transfers wait for each other and never deadlock.
\set lower random(1, :accounts - 1)
\set higher random(:lower + 1, :accounts)
\set amount random(-100, 100)
BEGIN;
UPDATE accounts SET balance = balance - :amount WHERE id = :lower;
UPDATE accounts SET balance = balance + :amount WHERE id = :higher;
INSERT INTO transfers (source, destination, amount) VALUES (:lower, :higher, :amount);
COMMIT;
