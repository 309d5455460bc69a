(ns tidegate.main
  "The command line:

    ./run -m tidegate.main subscribe [--server HOST:PORT] [--token-file FILE] [--client-id ID] [--heartbeat SECONDS]
                                     [--resume EPOCH:SEQUENCE | --replay N] FILTER...
    ./run -m tidegate.main publish [--server HOST:PORT] [--token-file FILE] [--key KEY] TOPIC PAYLOAD..."
  (:require [clojure.string :as str]
            [tidegate.client :as client])
  (:import (com.google.gson Gson)
           (com.google.protobuf ByteString Duration)
           (com.tidegate.v1 PublishResponse SubscribeRequest)
           (io.grpc ManagedChannel StatusRuntimeException)
           (java.io IOException)
           (java.util Base64)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

(defn- fail
  [code message]
  (binding [*out* *err*]
    (println message))
  (System/exit code))

(defn- options
  "Splits the arguments into a map of `--name value`, of the names that are known, and the others."
  [known arguments]
  (loop [options {"--server" "127.0.0.1:50051"}, [name value & others :as arguments] arguments]
    (cond
      (not (some-> name (str/starts-with? "--"))) [options arguments]
      (and (known name) value) (recur (assoc options name value) others)
      :else (fail 2 (str "there is no option " name ", or it has no value")))))

(defn- payload
  "An entry of the object: `payload` where it is UTF-8, or else `payload_base64`."
  [^ByteString bytes]
  (if (.isValidUtf8 bytes)
    {:payload (.toStringUtf8 bytes)}
    {:payload_base64 (.encodeToString (Base64/getEncoder) (.toByteArray bytes))}))

(defn- seconds
  "A duration as protobuf writes it in JSON."
  [milliseconds]
  (str (/ milliseconds 1e3) "s"))

(defn- print-line
  "Prints an update as one JSON object, in the form of `tidegate sub --output json`."
  [{bytes :payload :keys [retry_in reconnect_after] :as update}]
  (let [object (cond-> update
                 bytes (-> (dissoc :payload) (merge (payload bytes)))
                 retry_in (assoc :retry_in (seconds retry_in))
                 reconnect_after (assoc :reconnect_after (seconds reconnect_after)))]
    (println (.toJson (Gson.) (update-keys object name)))
    ;; A `PrintStream` never throws: an event that could not be written would count as handled.
    (when (.checkError System/out)
      (throw (IOException. "the output cannot be written, or its reader has gone")))))

(defn- token
  "Read for each call, since another program may write a renewed token to the file. Some editors begin it with a mark of the
  byte order."
  [{file "--token-file"}]
  (when file
    #(str/trim (str/replace (slurp file) #"^\uFEFF" ""))))

(defn- subscribe
  [^ManagedChannel channel {:strs [--client-id --heartbeat --replay --resume] :as options} filters]
  (let [request (.addAllFilters (SubscribeRequest/newBuilder) filters)]
    (when --client-id
      (.setClientId request --client-id))
    (when --heartbeat
      (.setHeartbeatInterval request (-> (Duration/newBuilder)
                                         (.setSeconds (Long/parseLong (str/replace --heartbeat #"s$" "")))
                                         .build)))
    (when --replay
      (.setReplayLast request (Integer/parseUnsignedInt --replay)))
    (when --resume
      (.setResumeAfter request (client/read-position --resume)))
    (let [ending (client/subscribe! channel (.build request) print-line {:token (token options)})]
      (fail 1 (.getMessage ^StatusRuntimeException ending)))))

(defn- publish
  [^ManagedChannel channel {:strs [--key] :as options} [topic & payloads]]
  (let [events (for [^String payload payloads]
                 {:topic topic :payload (.getBytes payload "UTF-8") :key --key})
        token (token options)
        ^PublishResponse answer (client/publish! channel events {:token (when token (token))})]
    (println (format "published %d as sequences %s to %s, %s deliveries to come"
                     (.getCount answer)
                     (Long/toUnsignedString (.getFirstSequence answer))
                     (Long/toUnsignedString (.getLastSequence answer))
                     (Long/toUnsignedString (.getMatched answer))))
    (.. channel shutdown (awaitTermination 10 TimeUnit/SECONDS))))

(def ^:private commands
  ;; JSON lines are the one form of `--output` that there is.
  {"subscribe" [subscribe #{"--server" "--token-file" "--client-id" "--heartbeat" "--resume" "--replay" "--output"}]
   "publish" [publish #{"--server" "--token-file" "--key"}]})

(defn -main [& [command & arguments]]
  (let [[run known] (or (commands command) (fail 2 "the commands are subscribe and publish"))
        [options others] (options known arguments)]
    (try
      (run (client/channel (options "--server")) options others)
      (catch Exception failure
        (fail 1 (str failure))))))
