// Producers of Kafka's Java client, told what to do line by line on stdin: a number, a tab, and a
// command whose words are separated by tabs. Each is answered by its number and "done" or "failed".
// What the commands mean stands at JavaProducer::say in src/kafka/producer.rs.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.function.Consumer;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Producer {
    private final String brokers;
    private final Map<String, KafkaProducer<byte[], byte[]>> producers = new HashMap<>();
    private final List<Future<RecordMetadata>> posted = new ArrayList<>();

    private Producer(String brokers) {
        this.brokers = brokers;
    }

    public static void main(String[] arguments) throws Exception {
        Producer all = new Producer(arguments[0]);
        BufferedReader input =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split("\t", -1);
            try {
                String answer = all.run(words[1], Arrays.copyOfRange(words, 2, words.length));
                System.out.println(words[0] + "\tdone\t" + answer);
            } catch (Exception failure) {
                System.out.println(words[0] + "\tfailed\t" + failure);
            }
        }
        System.exit(0);
    }

    private String run(String command, String[] words) throws Exception {
        switch (command) {
            case "open": return open(words);
            case "begin": producers.get(words[0]).beginTransaction(); return "";
            case "commit": producers.get(words[0]).commitTransaction(); return "";
            case "abort": producers.get(words[0]).abortTransaction(); return "";
            case "close": producers.remove(words[0]).close(); return "";
            case "send": return send(words);
            case "post": return post(words);
            case "settle": return settle();
            case "fill": return fill(words);
            case "trim": return trim(words);
            case "dump": return dump(words);
            case "records": return records(words);
            default: throw new IllegalArgumentException(command);
        }
    }

    private String open(String[] words) {
        Map<String, Object> config = new HashMap<>();
        config.put("bootstrap.servers", brokers);
        // With more, a broker that does not lead a new topic's partition yet may refuse the first batch and
        // take the next one; the first is then out of sequence, and is sent again until its time is up.
        config.put("max.in.flight.requests.per.connection", "1");
        for (int at = 1; at < words.length; at++) {
            String[] pair = words[at].split("=", 2);
            config.put(pair[0], pair[1]);
        }
        ByteArraySerializer bytes = new ByteArraySerializer();
        KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config, bytes, bytes);
        if (config.containsKey("transactional.id")) {
            producer.initTransactions();
        }
        producers.put(words[0], producer);
        return "";
    }

    private String send(String[] words) throws Exception {
        Future<RecordMetadata> sent = producers.get(words[0]).send(record(words));
        producers.get(words[0]).flush();
        return Long.toString(sent.get().offset());
    }

    private String post(String[] words) {
        posted.add(producers.get(words[0]).send(record(words)));
        return "";
    }

    private String settle() throws Exception {
        for (Future<RecordMetadata> one : posted) {
            one.get();
        }
        posted.clear();
        return "";
    }

    private static ProducerRecord<byte[], byte[]> record(String[] words) {
        ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(
            words[1], Integer.valueOf(words[2]), text(words[3]), text(words[4]));
        for (int at = 5; at < words.length; at++) {
            String[] pair = words[at].split("=", 2);
            record.headers().add(pair[0], pair.length == 2 ? text(pair[1]) : null);
        }
        return record;
    }

    private String fill(String[] words) throws Exception {
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        int count = Integer.parseInt(words[3]);
        byte[] value = new byte[Integer.parseInt(words[4])];
        for (int number = 0; number < count; number++) {
            Arrays.fill(value, (byte) ('a' + number % 26));
            ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(
                words[1], Integer.valueOf(words[2]), text(Integer.toString(number)), value.clone());
            sent.add(producers.get(words[0]).send(record));
        }
        producers.get(words[0]).flush();
        for (Future<RecordMetadata> one : sent) {
            one.get();
        }
        return "";
    }

    private String trim(String[] words) throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", brokers))) {
            TopicPartition partition = new TopicPartition(words[0], Integer.parseInt(words[1]));
            RecordsToDelete below = RecordsToDelete.beforeOffset(Long.parseLong(words[2]));
            admin.deleteRecords(Map.of(partition, below)).all().get();
        }
        return "";
    }

    private String dump(String[] words) throws Exception {
        try (PrintStream file = new PrintStream(words[1], StandardCharsets.UTF_8)) {
            readAll(words[0], one -> {
                byte[] value = one.value() == null ? new byte[0] : one.value();
                file.println(one.partition() + "\t" + new String(value, StandardCharsets.UTF_8));
            });
        }
        return "";
    }

    private String records(String[] words) throws Exception {
        try (PrintStream file = new PrintStream(words[1], StandardCharsets.UTF_8)) {
            readAll(words[0], one -> {
                file.print(one.partition() + "\t" + one.offset());
                file.print("\t" + digits(one.key()) + "\t" + digits(one.value()));
                for (Header header : one.headers()) {
                    file.print("\t" + header.key() + "=" + digits(header.value()));
                }
                file.println();
            });
        }
        return "";
    }

    private void readAll(String topic, Consumer<ConsumerRecord<byte[], byte[]>> take) {
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        Map<String, Object> config = Map.of("bootstrap.servers", brokers);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(config, bytes, bytes)) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (PartitionInfo one : consumer.partitionsFor(topic)) {
                partitions.add(new TopicPartition(topic, one.partition()));
            }
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            while (partitions.stream().anyMatch(one -> consumer.position(one) < ends.get(one))) {
                consumer.poll(Duration.ofSeconds(1)).forEach(take);
            }
        }
    }

    private static String digits(byte[] bytes) {
        return bytes == null ? "~" : HexFormat.of().formatHex(bytes);
    }

    private static byte[] text(String word) {
        if (word.startsWith("0x")) {
            return HexFormat.of().parseHex(word.substring(2));
        }
        return word.equals("~") ? null : word.getBytes(StandardCharsets.UTF_8);
    }
}
