(ns tidegate.client
  "A subscription to Tidegate that survives: it resumes after every interruption, and tells of every gap.
  docs/protocol.md says why each line is as it is."
  (:require [clojure.string :as str])
  (:import (com.google.protobuf ByteString Duration Timestamp)
           (com.tidegate.v1 Event EventServiceGrpc EventServiceGrpc$EventServiceBlockingStub Gap GapReason NewEvent Position
                            PublishRequest PublishResponse SubscribeRequest SubscribeResponse)
           (io.grpc Context ManagedChannel ManagedChannelBuilder Metadata Metadata$Key Status Status$Code
                    StatusRuntimeException)
           (io.grpc.stub MetadataUtils)
           (java.time Instant)
           (java.util Iterator)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

;; ===== Connections =====

(defn channel
  "A channel to HOST:PORT, without TLS."
  ^ManagedChannel [^String target]
  (-> (ManagedChannelBuilder/forTarget target)
      .usePlaintext
      ;; Detects within 40 seconds that the server has vanished without closing the connection.
      (.keepAliveTime 30 TimeUnit/SECONDS)
      (.keepAliveTimeout 10 TimeUnit/SECONDS)
      ;; A response that is larger ends its stream, and resuming brings the same one: above 4 MiB, the default, for servers
      ;; that allow larger events.
      (.maxInboundMessageSize (* 64 1024 1024))
      .build))

(defn- stub
  ^EventServiceGrpc$EventServiceBlockingStub [^ManagedChannel channel token]
  (let [headers (Metadata.)]
    (when token
      (.put headers (Metadata$Key/of "authorization" Metadata/ASCII_STRING_MARSHALLER) (str "Bearer " token)))
    (MetadataUtils/attachHeaders (EventServiceGrpc/newBlockingStub channel) headers)))

(defn publish!
  "Publishes the events, which are maps, as one batch: all of it is stored, or an exception says that none is known to be."
  ^PublishResponse [^ManagedChannel channel events {:keys [token]}]
  (let [request (PublishRequest/newBuilder)]
    (doseq [{:keys [topic ^bytes payload key]} events]
      (.addEvents request (-> (NewEvent/newBuilder)
                              (.setTopic topic)
                              (.setPayload (ByteString/copyFrom payload))
                              (.setKey (or key ""))
                              .build)))
    (let [^EventServiceGrpc$EventServiceBlockingStub stub (.withDeadlineAfter (stub channel token) 10 TimeUnit/SECONDS)]
      (.publish stub (.build request)))))

;; ===== Responses as updates =====

(defn- unsigned
  "The number of a field of 64 bits without a sign: Java has none, so the upper half of them arrives negative."
  [^long n]
  (if (neg? n) (BigInteger. (Long/toUnsignedString n)) n))

(defn show-position
  "EPOCH:SEQUENCE, as `tidegate sub` writes it."
  [^Position position]
  (format "%016x:%s" (.getEpoch position) (Long/toUnsignedString (.getSequence position))))

(defn read-position
  "The inverse of `show-position`."
  ^Position [text]
  (let [[_ epoch sequence] (or (re-matches #"(?i)([0-9a-f]{1,16}):(\d{1,20})" text)
                               (throw (IllegalArgumentException. (str "a position is EPOCH:SEQUENCE, and not " text))))]
    (-> (Position/newBuilder)
        (.setEpoch (Long/parseUnsignedLong epoch 16))
        (.setSequence (Long/parseUnsignedLong sequence))
        .build)))

(defn- reason-of
  "A newer server may have a reason that these classes do not know, which is a loss all the same."
  [^Gap gap]
  (if (= GapReason/UNRECOGNIZED (.getReason gap))
    (str "unknown_" (.getReasonValue gap))
    (-> (.. gap getReason name) (str/replace-first "GAP_REASON_" "") str/lower-case)))

(defn- milliseconds
  "A number with a point: the seconds of a duration may be so many that their milliseconds are no `long`."
  [^Duration duration]
  (+ (* 1e3 (.getSeconds duration)) (/ (.getNanos duration) 1e6)))

(defn- update-of
  "An event as a map, without what it has not."
  [^Event event]
  (let [key (.getKey event)
        attributes (.getAttributesMap event)
        ^Timestamp time (.getTime event)]
    (cond-> {:type "event"
             :sequence (unsigned (.getSequence event))
             :topic (.getTopic event)
             :payload (.getPayload event)}
      (seq key) (assoc :key key)
      (seq attributes) (assoc :attributes attributes)
      (.hasTime event) (assoc :time (str (Instant/ofEpochSecond (.getSeconds time) (.getNanos time)))))))

(defn updates
  "What a response tells, as maps. A kind that is newer than these classes tells nothing."
  [^SubscribeResponse response]
  (case (.. response getResponseCase name)
    "SUBSCRIBED" (let [subscribed (.getSubscribed response)]
                   [{:type "subscribed"
                     :client_id (.getClientId subscribed)
                     :position (show-position (.getPosition subscribed))
                     :next_index (unsigned (.getNextIndex subscribed))}])
    "BATCH" (map update-of (.. response getBatch getEventsList))
    "GAP" (let [gap (.getGap response)]
            [{:type "gap"
              :first_sequence (unsigned (.getFirstSequence gap))
              :last_sequence (unsigned (.getLastSequence gap))
              ;; 0: unknown, perhaps none.
              :count (unsigned (.getCount gap))
              :reason (reason-of gap)}])
    "HEARTBEAT" (let [heartbeat (.getHeartbeat response)]
                  [(cond-> {:type "heartbeat"}
                     (.hasPosition heartbeat) (assoc :position (show-position (.getPosition heartbeat))))])
    "CAUGHT_UP" [{:type "caught_up" :position (show-position (.. response getCaughtUp getPosition))}]
    "GOING_AWAY" (let [going-away (.getGoingAway response)]
                   [{:type "going_away"
                     :reason (.getReason going-away)
                     :reconnect_after (milliseconds (.getReconnectAfter going-away))}])
    []))

;; ===== Positions =====

(defn- newer
  "`stated`, or `position` where that is of the same epoch and further. Sequences have no sign: `max` would err."
  [^Position position ^Position stated]
  (if (and position
           (= (.getEpoch position) (.getEpoch stated))
           (pos? (Long/compareUnsigned (.getSequence position) (.getSequence stated))))
    position
    stated))

(defn- check
  "The cursor with the index after `response`, which is to be handled: its own must continue what came before."
  [{:keys [next-index] :as cursor} ^SubscribeResponse response]
  (letfn [(through [first-index n]
            (when (not= first-index next-index)
              (throw (IllegalStateException. (format "the server broke the protocol: index %s came in place of %s"
                                                     (Long/toUnsignedString first-index)
                                                     (Long/toUnsignedString next-index)))))
            (assoc cursor :next-index (unchecked-add (long next-index) (long n))))]
    (case (.. response getResponseCase name)
      "SUBSCRIBED" (assoc cursor :next-index (.. response getSubscribed getNextIndex))
      "BATCH" (through (.. response getBatch getFirstIndex) (.. response getBatch getEventsCount))
      "GAP" (let [gap (.getGap response)]
              ;; An unknown count takes no index.
              (if (zero? (.getCount gap)) cursor (through (.getFirstIndex gap) (.getCount gap))))
      cursor)))

(defn advance
  "The cursor after `response`, whose contents have been handled. Its `:position` is the one to resume after; none is
  known before the first event of a `replay_last`."
  [{:keys [epoch position replays?] :as cursor} ^SubscribeResponse response]
  (letfn [(to [stated] (update cursor :position newer stated))
          ;; Where nothing is settled yet, or in another epoch, this would lead past events that are still to come.
          (further [^Position stated]
            (if (and position (= (.getEpoch ^Position position) (.getEpoch stated))) (to stated) cursor))
          (through [sequence] (to (-> (Position/newBuilder) (.setEpoch epoch) (.setSequence sequence) .build)))]
    (case (.. response getResponseCase name)
      "SUBSCRIBED" (let [subscribed (.getSubscribed response)
                         head (.getPosition subscribed)]
                     (assoc cursor
                            :client-id (.getClientId subscribed)
                            :epoch (.getEpoch head)
                            ;; With a replay, everything up to the head is still to come.
                            :position (if replays? position head)))
      "BATCH" (let [events (.. response getBatch getEventsList)]
                (through (.getSequence ^Event (.get events (dec (.size events))))))
      ;; Conflated events lie between those that survived, which are still to come.
      "GAP" (let [gap (.getGap response)]
              (if (= GapReason/GAP_REASON_CONFLATED (.getReason gap)) cursor (through (.getLastSequence gap))))
      "HEARTBEAT" (let [heartbeat (.getHeartbeat response)]
                    (if (.hasPosition heartbeat) (further (.getPosition heartbeat)) cursor))
      "CAUGHT_UP" (to (.. response getCaughtUp getPosition))
      "GOING_AWAY" (let [going-away (.getGoingAway response)]
                     (if (.hasResumeAfter going-away) (further (.getResumeAfter going-away)) cursor))
      cursor)))

;; ===== Endings =====

(defn- trailer
  ^String [^StatusRuntimeException ending ^String name]
  (some-> (.getTrailers ending) (.get (Metadata$Key/of name Metadata/ASCII_STRING_MARSHALLER))))

(defn- next-step
  "What to do after an ending: by its reason, or by its code if there is no reason, or one that this table has not."
  [^StatusRuntimeException ending]
  (case (trailer ending "tidegate-reason")
    ("TOO_SLOW" "STALLED" "QUOTA_EXCEEDED" "SHUTTING_DOWN" "MAX_CONNECTION_AGE" "EPOCH_CHANGED" "KEYS_UNAVAILABLE"
     "DEADLINE_EXCEEDED" "INTERNAL") :resume
    ("CREDENTIALS_MISSING" "CREDENTIALS_INVALID" "CREDENTIALS_EXPIRED" "CREDENTIALS_REVOKED") :renew
    "POSITION_AHEAD" :begin-anew
    ("INVALID_FILTER" "INVALID_TOPIC" "INVALID_CLIENT_ID" "INVALID_LIMITS" "INVALID_POSITION" "INVALID_REQUEST"
     "TOO_MANY_FILTERS" "FILTERS_TOO_COSTLY" "TOO_MANY_EVENTS" "EVENT_TOO_LARGE" "BATCH_TOO_LARGE"
     "COMPRESSION_UNSUPPORTED" "MALFORMED_MESSAGE"
     "CLIENT_ID_TAKEN" "TAKEN_OVER" "DISCONNECTED" "NOT_ALLOWED") :stop
    (case (.. ending getStatus getCode name)
      ("UNAVAILABLE" "INTERNAL" "UNKNOWN" "CANCELLED" "DEADLINE_EXCEEDED" "RESOURCE_EXHAUSTED") :resume
      "UNAUTHENTICATED" :renew
      "OUT_OF_RANGE" :begin-anew
      :stop)))

(defn- milliseconds-asked
  [ending]
  (or (some-> (trailer ending "tidegate-retry-after-ms") parse-long) 0))

;; ===== The subscription =====

(defn- receive
  "The next response, or the exception that ends the stream. `.hasNext` and `.next` by hand: `iterator-seq` would take 32
  responses before it shows the first."
  [^Iterator responses]
  (try
    (if (.hasNext responses)
      (.next responses)
      ;; No Tidegate server ends a stream with OK: something between does.
      (.asRuntimeException (.withDescription Status/UNAVAILABLE "the stream ended without a reason")))
    (catch StatusRuntimeException ending ending)))

(def ^:private silent
  (.asRuntimeException (.withDescription Status/UNAVAILABLE "no response for three heartbeats")))

(def ^:private largest-event-ms
  "The library hands over whole responses and not their bytes, so a large event over a slow link looks like silence."
  5000)

(defn- silence-of
  "Milliseconds without a response after which the stream is dead: three heartbeats, and the time of a large event."
  [^SubscribeRequest request]
  (long (+ largest-event-ms
           (* 3 (if (.hasHeartbeatInterval request) (milliseconds (.getHeartbeatInterval request)) 15000)))))

(defn- read-stream!
  "Reads one stream to its end, moves `cursor`, an atom, and returns how it ended: the exception, whether the stream had
  begun, whether anything but `subscribed` came, and the milliseconds that the server asked to wait."
  [stub request cursor handle]
  (let [context (.withCancellation (Context/current))
        caller (.attach context)]
    (try
      (let [responses (.subscribe ^EventServiceGrpc$EventServiceBlockingStub stub request)]
        (loop [ended {:began? false :moved? false :wait 0}]
          (let [response (deref (future (receive responses)) (silence-of request) silent)]
            (if (instance? SubscribeResponse response)
              (let [told (updates response)]
                (swap! cursor check response)
                ;; Handled first, then remembered: if handling fails, its events come again.
                (run! handle told)
                (swap! cursor advance response)
                (recur (reduce (fn [ended {:keys [type reconnect_after]}]
                                 (case type
                                   "subscribed" (assoc ended :began? true)
                                   ("event" "gap" "heartbeat") (assoc ended :moved? true)
                                   "going_away" (assoc ended :wait reconnect_after)
                                   ended))
                               ended told)))
              (-> ended (assoc :ending response) (update :wait max (milliseconds-asked response)))))))
      (finally
        (.detach context caller)
        ;; If the stream is silent or `handle` has thrown, nobody reads it any more, and only this ends it.
        (.cancel context nil)))))

(defn- request-for
  "The request of the next stream: the id that the server has made, and the position. `replay_last` is for a stream without
  one: together they are refused, and *resume after 0* would ask for all of history."
  ^SubscribeRequest [^SubscribeRequest request {:keys [client-id ^Position position]}]
  (let [next (.toBuilder request)]
    (when client-id
      (.setClientId next client-id))
    (.clearResumeAfter next)
    (when position
      (-> next .clearReplayLast (.setResumeAfter position)))
    (.build next)))

(defn- replays?
  [^SubscribeRequest request]
  (or (.hasResumeAfter request) (pos? (Integer/toUnsignedLong (.getReplayLast request)))))

(defn subscribe!
  "Calls `handle` with every update, one at a time and in order, through interruptions and restarts. Returns the exception
  of the ending after which the server says to stop. Options: `:token`, a function that returns the bearer token."
  [^ManagedChannel channel ^SubscribeRequest request handle {:keys [token]}]
  (when (and (.hasResumeAfter request) (not (zero? (.getReplayLast request))))
    (throw (IllegalArgumentException. "either a position or the newest events: not both")))
  (let [cursor (atom {:position (when (.hasResumeAfter request) (.getResumeAfter request))})]
    (loop [failures 0]
      (let [request (request-for request @cursor)
            _ (swap! cursor assoc :replays? (replays? request))
            ;; The channel has a back-off of its own, of up to two minutes: the one below is enough.
            _ (.resetConnectBackoff channel)
            {:keys [^StatusRuntimeException ending began? moved? wait]}
            (read-stream! (stub channel (when token (token))) request cursor handle)
            failures (if moved? 0 failures)
            ;; Full jitter, so that many clients do not come back at the same moment.
            pause (long (+ (min wait 3600000) (rand (min 30000 (bit-shift-left 250 (min failures 10))))))
            step (next-step ending)]
        (if (case step
              :resume true
              ;; The server has lost events that it once sent, and the state that was made of them may be wrong.
              :begin-anew (:position @cursor)
              ;; One stream with a new token: if that is refused too, it has not begun.
              :renew (and token began?)
              :stop false)
          (do
            (handle {:type "reconnecting"
                     :code (.. ending getStatus getCode name)
                     :message (or (.. ending getStatus getDescription) "")
                     :retry_in pause})
            (when (= step :begin-anew)
              (swap! cursor dissoc :position))
            (Thread/sleep pause)
            (recur (inc failures)))
          ending)))))
